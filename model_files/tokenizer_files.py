"""Where a model keeps its tokenizer; `coordinator.text` builds the tokenizer itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HfTokenizerFiles:
    """The tokenizer of a Hugging Face folder."""

    tokenizer_json: Path
    """The file that `tokenizers.Tokenizer.from_file` reads."""
    tokenizer_config: Mapping[str, object]
    """Content of `tokenizer_config.json`; empty without one."""
    chat_template: str | None
    """Jinja source, from a file of its own or else from the tokenizer configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """The tokenizer of a GGUF file."""

    metadata: Mapping[str, object]
    """Every `tokenizer.*` field and `general.name`, by the full name; values are str, int, float,
    bool or lists."""


TokenizerFiles = HfTokenizerFiles | GgufTokenizer
