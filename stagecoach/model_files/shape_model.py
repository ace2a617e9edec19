"""Models by their published shape alone, without any file: for emulated stages and for plans."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.model_files import (
    ByteReport,
    ModelFiles,
    TensorReader,
    fingerprint_of,
    no_report,
)

SHAPE_PREFIX = "shape:"
"""Before the name of a shape where a model is asked for."""


class _Shape(NamedTuple):
    """The numbers of a model's `config.json`."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int


SHAPES = {
    "llama-160m": _Shape("llama", 12, 768, 3072, 12, 12, 32000, 2048),
    "llama-1b": _Shape("llama", 22, 2048, 5632, 32, 4, 32000, 2048),
    "llama-2-7b": _Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": _Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-2-70b": _Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096),
    "llama-3.1-8b": _Shape("llama", 32, 4096, 14336, 32, 8, 128256, 131072),
    "llama-3.1-70b": _Shape("llama", 80, 8192, 28672, 64, 8, 128256, 131072),
    "mistral-7b": _Shape("mistral", 32, 4096, 14336, 32, 8, 32768, 32768),
    "qwen2.5-7b": _Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
    "qwen2.5-14b": _Shape("qwen2", 48, 5120, 13824, 40, 8, 152064, 32768),
    "qwen2.5-32b": _Shape("qwen2", 64, 5120, 27648, 40, 8, 152064, 32768),
}
"""Shapes of models as their authors published them; llama-1b is TinyLlama's, mistral-7b that of
version 0.3."""


class ShapeModel(ModelFiles):
    """A model that has a configuration and nothing else: no weights, no tokenizer, no end token.

    Args:
        name: A key of `SHAPES`.

    Raises:
        ModelFilesError: There is no such shape.
    """

    def __init__(self, name: str) -> None:
        shape = SHAPES.get(name)
        if shape is None:
            raise ModelFilesError(
                f"there is no {SHAPE_PREFIX}{name}; known are {', '.join(SHAPES)}"
            )
        self.model_id = SHAPE_PREFIX + name
        self._shape = shape._asdict()
        self.config = parse_config({**self._shape, "eos_token_id": None})

    @property
    def fingerprint(self) -> str:
        """sha256 over the numbers."""
        return fingerprint_of({"shape": self._shape})

    @property
    def tensor_names(self) -> Collection[str]:
        """Raises UnsupportedModelError: there are none."""
        raise self._no_weights()

    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> AbstractContextManager[TensorReader]:
        """Raises UnsupportedModelError: there are none."""
        raise self._no_weights()

    def tokenizer_files(self) -> None:
        """Returns None: only token ids can be served."""
        return

    def _no_weights(self) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.model_id} is a shape without weights: only emulated stages serve it "
            "(--engine emulated)"
        )
