"""What CUDA and torch's allocator read from the environment when they are loaded."""

from collections.abc import MutableMapping

from stage_server.compute.nvidia_machine import runs_on_wsl

_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_NAMES = frozenset({_ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"})
"""The present name and the one before it."""


def prepare_cuda(environment: MutableMapping[str, str], *, is_wsl: bool | None = None) -> None:
    """Sets what suits a stage; takes effect only before torch is imported.

    A micro-batch has another size than the one before. The allocator grows its segments to fit,
    where it would keep many of other sizes. Drivers of Windows cannot do that under Linux. Cards
    are numbered as `nvidia-smi` does, and not by their speed. A variable that the operator has set
    stays.

    Args:
        environment: Environment of this process; changed in place.
        is_wsl: Whether Windows' driver serves the card; None: find out.
    """
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    grows = not (runs_on_wsl() if is_wsl is None else is_wsl)
    if grows and not _ALLOCATOR_NAMES & environment.keys():
        environment[_ALLOCATOR] = "expandable_segments:True"
