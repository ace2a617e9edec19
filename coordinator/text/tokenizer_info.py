"""What a client needs that writes the prompts of a model itself: its special tokens and template.

In the shape of a Hugging Face `tokenizer_config.json`, as other servers tell it.
"""

from collections.abc import Mapping

from coordinator.text.declared_tokens import declared_tokens
from coordinator.text.gguf_vocabulary import GgufVocabulary
from stagecoach.model_files import GgufTokenizer, HfTokenizerFiles
from stagecoach.model_files.tokenizer_files import TokenizerFiles

_FAST_TOKENIZER = "PreTrainedTokenizerFast"
"""What reads a tokenizer that says nothing of its class."""

_FILE_FIELDS = frozenset(
    {"vocab_file", "merges_file", "tokenizer_file", "name_or_path", "auto_map", "init_inputs"}
)
"""Fields of the configuration that are paths of the machine that wrote it, or code."""

TokenizerInfo = Mapping[str, object]


def tokenizer_info(files: TokenizerFiles | None) -> TokenizerInfo | None:
    """Tells of the tokenizer of a model.

    Args:
        files: Files of the tokenizer; None for a model without one.

    Raises:
        ModelFilesError: They are damaged or contradict each other.
    """
    match files:
        case HfTokenizerFiles():
            return _of_hf(files)
        case GgufTokenizer():
            return _of_gguf(files)
        case None:
            return None


def _of_hf(files: HfTokenizerFiles) -> TokenizerInfo:
    """The configuration, with the named tokens and the template that are really used."""
    config = {
        name: value for name, value in files.tokenizer_config.items() if name not in _FILE_FIELDS
    }
    return {
        "tokenizer_class": _FAST_TOKENIZER,
        **config,
        **declared_tokens(files).contents,
        "chat_template": files.chat_template,
    }


def _of_gguf(files: GgufTokenizer) -> TokenizerInfo:
    vocabulary = GgufVocabulary.parse(files.metadata)
    return {
        "tokenizer_class": _FAST_TOKENIZER,
        **vocabulary.special_tokens,
        "add_eos_token": vocabulary.adds_eos,
        **({} if vocabulary.adds_bos is None else {"add_bos_token": vocabulary.adds_bos}),
        "chat_template": files.metadata.get("tokenizer.chat_template"),
    }
