"""Models by their published shape alone, without any file: for emulated stages and for plans."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

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


_NUMBERS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


def _shape(model_type: str, *numbers: int, **others: object) -> Mapping[str, object]:
    """Writes the numbers of a model's `config.json`: those of all, and those of some."""
    named = dict(zip(_NUMBERS, numbers, strict=True))
    return MappingProxyType({"model_type": model_type, **named, **others})


SHAPES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "llama-160m": _shape("llama", 12, 768, 3072, 12, 12, 32000, 2048),
        "llama-1b": _shape("llama", 22, 2048, 5632, 32, 4, 32000, 2048),
        "llama-2-7b": _shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096),
        "llama-2-13b": _shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096),
        "llama-2-70b": _shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096),
        "llama-3.1-8b": _shape("llama", 32, 4096, 14336, 32, 8, 128256, 131072),
        "llama-3.1-70b": _shape("llama", 80, 8192, 28672, 64, 8, 128256, 131072),
        "mistral-7b": _shape("mistral", 32, 4096, 14336, 32, 8, 32768, 32768),
        "mixtral-8x7b": _shape("mixtral", 32, 4096, 14336, 32, 8, 32000, 32768),
        "qwen2.5-7b": _shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
        "qwen2.5-14b": _shape("qwen2", 48, 5120, 13824, 40, 8, 152064, 32768),
        "qwen2.5-32b": _shape("qwen2", 64, 5120, 27648, 40, 8, 152064, 32768),
        "deepseek-v2-lite": _shape(
            *("deepseek_v2", 27, 2048, 10944, 16, 16, 102400, 163840),
            first_k_dense_replace=1,
            moe_intermediate_size=1408,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            q_lora_rank=None,
        ),
        "glm-4.7-flash": _shape(
            *("glm4_moe_lite", 47, 2048, 10240, 20, 20, 154880, 202752),
        ),
        "gpt-oss-20b": _shape(
            *("gpt_oss", 24, 2880, 2880, 64, 8, 201088, 131072),
            head_dim=64,
            num_experts_per_tok=4,
            num_local_experts=32,
        ),
        "gpt-oss-120b": _shape(
            *("gpt_oss", 36, 2880, 2880, 64, 8, 201088, 131072),
            head_dim=64,
            num_experts_per_tok=4,
            num_local_experts=128,
        ),
        "qwen3-30b-a3b": _shape(
            *("qwen3_moe", 48, 2048, 6144, 32, 4, 151936, 40960),
            head_dim=128,
            moe_intermediate_size=768,
            norm_topk_prob=True,
            num_experts=128,
            num_experts_per_tok=8,
        ),
    }
)
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
        self._shape = shape
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
