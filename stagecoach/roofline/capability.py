"""The compute capability of a card: which generation of NVIDIA's instructions it runs."""

from typing import NamedTuple


class Capability(NamedTuple):
    """Such as 8.6; newer ones compare as greater."""

    major: int
    minor: int

    @property
    def has_bfloat16(self) -> bool:
        """Whether cards multiply matrices of bfloat16, as all do since Ampere."""
        return self >= MIN_BFLOAT16

    @property
    def has_tensor_cores(self) -> bool:
        """Whether kernels of ours multiply on tensor cores, as Triton does since Ampere."""
        return self >= _MIN_TENSOR_CORES

    def __str__(self) -> str:
        """The capability as NVIDIA writes it."""
        return f"{self.major}.{self.minor}"


MIN_BFLOAT16 = Capability(8, 0)
_MIN_TENSOR_CORES = Capability(8, 0)
