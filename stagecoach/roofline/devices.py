"""The GPUs that people have: memory, bandwidth and arithmetic, as their vendor states them.

Sources: NVIDIA's whitepapers of the Turing, Ampere GA102, Ada and RTX Blackwell architectures for
GeForce cards (for boards that came later, NVIDIA's product pages); NVIDIA's data sheets for Tesla,
A, L, RTX A, H and RTX Ada cards. Arithmetic is dense float16 on tensor cores with float32
accumulation, without sparsity, at boost clock: half of the accumulation-in-float16 rate on GeForce
cards. Pascal has no tensor cores: there it is the float32 rate, at which cuBLAS multiplies float16
matrices with float32 accumulation. A card of "12 GB" has 12 GiB. Compute capabilities are those of
NVIDIA's list of CUDA GPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from stagecoach.roofline.capability import Capability
from stagecoach.roofline.named import find_named
from stagecoach.roofline.torch_builds import PINNED_TORCH

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as its data sheet describes it."""

    name: str
    """Name that options take: `rtx-3060-12gb`."""
    memory_bytes: int
    bandwidth_bytes_per_s: float
    """Bandwidth of the GPU's memory."""
    flops_per_s: float
    """Dense float16 with float32 accumulation; a multiplication and an addition count two."""
    capability: Capability

    @property
    def runs_pinned_torch(self) -> bool:
        """Whether the build of torch that is pinned has kernels for it."""
        return PINNED_TORCH.has_kernels_for(self.capability)

    def scaled(self, *, bandwidth: float, compute: float) -> "Gpu":
        """Returns the same GPU with its bandwidth and its arithmetic multiplied."""
        return replace(
            self,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s * bandwidth,
            flops_per_s=self.flops_per_s * compute,
        )


def gpu_named(name: str, *, field: str = "gpu") -> Gpu:
    """Returns the GPU of that name.

    Args:
        name: Such as `rtx-3060-12gb`.
        field: Name of the option, for the error.

    Raises:
        InvalidArgumentError: It is not in the table; the message names the nearest ones.
    """
    return find_named(GPUS, name, field=field)


def _gpu(
    name: str,
    memory_gib: int,
    bandwidth_gb_per_s: float,
    tflops_per_s: float,
    capability: tuple[int, int],
) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=memory_gib * _GIB,
        bandwidth_bytes_per_s=bandwidth_gb_per_s * 1e9,
        flops_per_s=tflops_per_s * 1e12,
        capability=Capability(*capability),
    )


_ALL = (
    # Pascal: float32 rate
    _gpu("gtx-1060-6gb", 6, 192, 4.4, (6, 1)),
    _gpu("gtx-1070-8gb", 8, 256, 6.5, (6, 1)),
    _gpu("gtx-1080-8gb", 8, 320, 8.9, (6, 1)),
    _gpu("gtx-1080-ti-11gb", 11, 484, 11.3, (6, 1)),
    _gpu("p40-24gb", 24, 346, 11.8, (6, 1)),
    _gpu("p100-16gb", 16, 732, 9.3, (6, 0)),
    # Volta
    _gpu("v100-16gb", 16, 900, 112, (7, 0)),
    _gpu("v100-32gb", 32, 900, 112, (7, 0)),
    # Turing
    _gpu("rtx-2060-6gb", 6, 336, 25.8, (7, 5)),
    _gpu("rtx-2060-12gb", 12, 336, 28.7, (7, 5)),
    _gpu("rtx-2070-8gb", 8, 448, 29.9, (7, 5)),
    _gpu("rtx-2080-8gb", 8, 448, 40.3, (7, 5)),
    _gpu("rtx-2080-ti-11gb", 11, 616, 53.8, (7, 5)),
    _gpu("t4-16gb", 16, 300, 65, (7, 5)),
    # Ampere
    _gpu("rtx-3050-8gb", 8, 224, 18.2, (8, 6)),
    _gpu("rtx-3060-8gb", 8, 240, 25.6, (8, 6)),
    _gpu("rtx-3060-12gb", 12, 360, 25.6, (8, 6)),
    _gpu("rtx-3060-ti-8gb", 8, 448, 32.4, (8, 6)),
    _gpu("rtx-3070-8gb", 8, 448, 40.6, (8, 6)),
    _gpu("rtx-3070-ti-8gb", 8, 608, 43.5, (8, 6)),
    _gpu("rtx-3080-10gb", 10, 760, 59.5, (8, 6)),
    _gpu("rtx-3080-12gb", 12, 912, 61.3, (8, 6)),
    _gpu("rtx-3080-ti-12gb", 12, 912, 68.2, (8, 6)),
    _gpu("rtx-3090-24gb", 24, 936, 71, (8, 6)),
    _gpu("rtx-3090-ti-24gb", 24, 1008, 80, (8, 6)),
    _gpu("rtx-a2000-12gb", 12, 288, 32, (8, 6)),
    _gpu("rtx-a4000-16gb", 16, 448, 76.7, (8, 6)),
    _gpu("rtx-a5000-24gb", 24, 768, 111.1, (8, 6)),
    _gpu("rtx-a6000-48gb", 48, 768, 154.8, (8, 6)),
    _gpu("a10-24gb", 24, 600, 125, (8, 6)),
    _gpu("a100-40gb", 40, 1555, 312, (8, 0)),
    _gpu("a100-80gb", 80, 1935, 312, (8, 0)),
    # Ada
    _gpu("rtx-4060-8gb", 8, 272, 30.2, (8, 9)),
    _gpu("rtx-4060-ti-8gb", 8, 288, 44.1, (8, 9)),
    _gpu("rtx-4060-ti-16gb", 16, 288, 44.1, (8, 9)),
    _gpu("rtx-4070-12gb", 12, 504, 58.3, (8, 9)),
    _gpu("rtx-4070-super-12gb", 12, 504, 71, (8, 9)),
    _gpu("rtx-4070-ti-12gb", 12, 504, 80.2, (8, 9)),
    _gpu("rtx-4070-ti-super-16gb", 16, 672, 88.2, (8, 9)),
    _gpu("rtx-4080-16gb", 16, 717, 97.5, (8, 9)),
    _gpu("rtx-4080-super-16gb", 16, 736, 104.4, (8, 9)),
    _gpu("rtx-4090-24gb", 24, 1008, 165.2, (8, 9)),
    _gpu("rtx-6000-ada-48gb", 48, 960, 364.2, (8, 9)),
    _gpu("l4-24gb", 24, 300, 121, (8, 9)),
    _gpu("l40s-48gb", 48, 864, 362, (8, 9)),
    # Hopper
    _gpu("h100-pcie-80gb", 80, 2000, 756, (9, 0)),
    _gpu("h100-sxm-80gb", 80, 3350, 989, (9, 0)),
    _gpu("h200-141gb", 141, 4800, 989, (9, 0)),
    # Blackwell
    _gpu("rtx-5060-8gb", 8, 448, 38.4, (12, 0)),
    _gpu("rtx-5060-ti-8gb", 8, 448, 47.4, (12, 0)),
    _gpu("rtx-5060-ti-16gb", 16, 448, 47.4, (12, 0)),
    _gpu("rtx-5070-12gb", 12, 672, 61.7, (12, 0)),
    _gpu("rtx-5070-ti-16gb", 16, 896, 87.9, (12, 0)),
    _gpu("rtx-5080-16gb", 16, 960, 112.6, (12, 0)),
    _gpu("rtx-5090-32gb", 32, 1792, 209.5, (12, 0)),
)

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _ALL})
"""All of them, by name, older architectures first."""
