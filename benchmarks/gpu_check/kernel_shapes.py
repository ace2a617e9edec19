"""The shapes of attention that models have: every size of a head and every group of heads.

A group is the query heads that share a key head. Each line is a published model; where several
have the same shape, one stands for them.
"""

from typing import Any, NamedTuple

from stagecoach.contract.precision import DType
from stagecoach.model_files import ModelFiles
from tests.tiny_files import tiny_files


class KernelShape(NamedTuple):
    """Heads and widths of a model."""

    name: str
    case: str
    """Of `tests.tiny_models.FAMILIES`: its family, with what is unusual in it."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    mlp_width: int
    sliding_window: int | None = None
    """None: as in the case."""

    @property
    def files(self) -> ModelFiles:
        """The model, without weights."""
        overrides: dict[str, Any] = {
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.mlp_width,
        }
        if self.sliding_window is not None:
            overrides["sliding_window"] = self.sliding_window
        return tiny_files(self.case, **overrides)


SHAPES = (
    # Heads of 64.
    KernelShape("smollm2-1.7b", "llama", 32, 32, 64, 2048, 8192),
    KernelShape("smollm2-135m", "llama", 9, 3, 64, 576, 1536),
    KernelShape("llama-3.2-1b", "llama3-rope", 32, 8, 64, 2048, 8192),
    KernelShape("qwen2.5-0.5b", "qwen2", 14, 2, 64, 896, 4864),
    KernelShape("tinyllama-1.1b", "llama", 32, 4, 64, 2048, 5632),
    # Heads of 96 and 100.
    KernelShape("phi-3-mini", "phi3", 32, 32, 96, 3072, 8192, 2047),
    KernelShape("open-llama-3b", "llama", 32, 32, 100, 3200, 8640),
    # Heads of 128.
    KernelShape("llama-2-13b", "llama", 40, 40, 128, 5120, 13824),
    KernelShape("qwen3-0.6b", "qwen3", 16, 8, 128, 1024, 3072),
    KernelShape("llama-3.1-8b", "llama3-rope", 32, 8, 128, 4096, 14336),
    KernelShape("mistral-7b-v0.1", "mistral-window", 32, 8, 128, 4096, 14336, 4096),
    KernelShape("granite-3-8b", "granite", 32, 8, 128, 4096, 12800),
    KernelShape("qwen3-14b", "qwen3", 40, 8, 128, 5120, 17408),
    KernelShape("qwen2.5-1.5b", "qwen2", 12, 2, 128, 1536, 8960),
    KernelShape("qwen2.5-7b", "qwen2", 28, 4, 128, 3584, 18944),
    KernelShape("llama-3.1-70b", "llama3-rope", 64, 8, 128, 8192, 28672),
    KernelShape("starcoder2-7b", "starcoder2", 36, 4, 128, 4608, 18432, 4096),
    KernelShape("seed-oss-36b", "seed_oss", 80, 8, 128, 5120, 27648),
    KernelShape("starcoder2-3b", "starcoder2", 24, 2, 128, 3072, 12288, 4096),
    KernelShape("glm-4-9b", "glm4", 32, 2, 128, 4096, 13696),
    # Heads of 256.
    KernelShape("gemma-7b", "gemma", 16, 16, 256, 3072, 24576),
    KernelShape("gemma-2-2b", "gemma2", 8, 4, 256, 2304, 9216, 4096),
    KernelShape("gemma-3-1b", "gemma3_text", 4, 1, 256, 1152, 6912, 512),
    KernelShape("gemma-2b", "gemma", 8, 1, 256, 2048, 16384),
)

IN_ALL_DTYPES = frozenset({"tinyllama-1.1b", "llama-3.1-8b", "gemma-2-2b"})
"""Of the others, one dtype is checked, as compiling takes longest: the kernels differ by shape."""

QUICK_SHAPES = (
    KernelShape("tiny llama", "llama-gqa-tied", 4, 2, 16, 64, 96),
    KernelShape("tiny gemma2", "gemma2", 2, 1, 32, 64, 96),
)


def dtypes_of(shape: KernelShape) -> tuple[DType, ...]:
    """Returns the dtypes in which a shape is compared, the most usual one first."""
    if shape.name in IN_ALL_DTYPES:
        return (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
    return (DType.FLOAT16,)
