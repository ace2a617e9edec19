"""Builds the tokenizer that the metadata of a GGUF file describes.

The keys are those of the GGUF specification; what they mean is as in llama.cpp's
`src/llama-vocab.cpp`. transformers reads the same metadata, but splits text before BPE as GPT-2 did
where it does not know the name of the split.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from protos.errors import ModelFilesError, UnsupportedModelError

T = TypeVar("T", str, int, float, bool)

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Values of `tokenizer.ggml.token_type` that need care."""


def build_gguf_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """Builds a tokenizer.

    Args:
        metadata: Fields `tokenizer.*` by their full names.

    Raises:
        UnsupportedModelError: The kind of tokenizer, or of its text split, is not known.
        ModelFilesError: A field is missing, malformed or contradicts another.
    """
    model = field(metadata, "tokenizer.ggml.model", str)
    if model not in _BUILDERS:
        raise UnsupportedModelError(
            f"GGUF tokenizer {model!r} is not one of {', '.join(_BUILDERS)}", model=model
        )
    tokens = fields(metadata, "tokenizer.ggml.tokens", str)
    try:
        tokenizer, adds_bos = _BUILDERS[model](metadata, tokens)
    ...
