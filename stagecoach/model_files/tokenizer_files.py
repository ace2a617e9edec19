"""Where a model keeps its tokenizer; `coordinator.text` builds the tokenizer itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HfTokenizerFiles:
    """The tokenizer of a Hugging Face folder."""

    tokenizer_json: Path
    """The file, in UTF-8, whose text `tokenizers.Tokenizer.from_str` reads."""
    tokenizer_config: Mapping[str, object]
    """Content of `tokenizer_config.json`; empty without one."""
    chat_template: str | None
    """Jinja source, from a file of its own or else from the tokenizer configuration."""
    special_tokens_map: Mapping[str, object] = field(default_factory=dict)
    """Content of `special_tokens_map.json`, where older tools named tokens; empty without one."""
    added_tokens: Mapping[str, object] = field(default_factory=dict)
    """Content of `added_tokens.json`: ids by token; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """The tokenizer of a GGUF file."""

    metadata: Mapping[str, object]
    """Every `tokenizer.*` field and `general.name`, by the full name; values are str, int, float,
    bool or lists."""


TokenizerFiles = HfTokenizerFiles | GgufTokenizer
