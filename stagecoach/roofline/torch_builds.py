"""Which cards and drivers a build of torch for CUDA runs on, and what the pinned one's build is."""

import re
from typing import NamedTuple

from stagecoach.roofline.capability import Capability

_MIN_DRIVERS = {12: "525.60", 13: "580.65"}
"""Oldest driver on Linux for every minor version of CUDA, by its major one; NVIDIA, "CUDA
Compatibility", minor version compatibility."""

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
"""Such as sm_86: machine code; compute_120: PTX, which the driver compiles. `a` and `f` are of one
architecture alone."""

OLDER_BUILD = "torch of PyTorch's cu126 index"
"""The build that holds kernels for cards, and runs on drivers, that the pinned one leaves out."""

OLDER_BUILD_DRIVER = _MIN_DRIVERS[12]
"""The oldest that it runs on."""


class TorchBuild(NamedTuple):
    """What a build of torch was made for."""

    version: str
    cuda: str | None
    """Version of its CUDA, such as 13.0; None: it has none."""
    architectures: tuple[str, ...]
    """Architectures that the build has kernels for, as `torch.cuda.get_arch_list` names them."""

    @property
    def min_driver(self) -> str | None:
        """Oldest driver that it runs on; None where that is not known."""
        return None if self.cuda is None else _MIN_DRIVERS.get(int(self.cuda.partition(".")[0]))

    def is_for_newer_than(self, capability: Capability) -> bool:
        """Whether all its kernels are for cards of higher capabilities."""
        made_for = (_parsed(text) for text in self.architectures)
        return all(one is not None and one.capability > capability for one in made_for)

    def has_kernels_for(self, capability: Capability) -> bool:
        """Whether a card of that capability can run its kernels.

        Machine code runs on cards of the same major version and an equal or higher minor one; PTX
        on those of any equal or higher version (CUDA C++ Programming Guide, "Binary Compatibility"
        and "PTX Compatibility").
        """
        return any(_runs_on(text, capability) for text in self.architectures)


PINNED_TORCH = TorchBuild(
    version="2.13.0",
    cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
)
"""The package index's build of the version in `constraints.txt`; a test compares both."""


class _Architecture(NamedTuple):
    """One architecture of a build."""

    kind: str
    """`sm` or `compute`."""
    capability: Capability
    is_alone: bool
    """True when it serves no other one."""


def _parsed(text: str) -> _Architecture | None:
    """Reads an architecture of CUDA; None for one of others."""
    match = _ARCHITECTURE.fullmatch(text)
    if match is None:
        return None
    return _Architecture(match[1], Capability(int(match[2]), int(match[3])), bool(match[4]))


def _runs_on(text: str, capability: Capability) -> bool:
    found = _parsed(text)
    if found is None:
        return False
    if found.is_alone:
        return found.capability == capability
    if found.kind == "compute":
        return found.capability <= capability
    is_same_major = found.capability.major == capability.major
    return is_same_major and found.capability.minor <= capability.minor
