"""Tells from an exception of a computation whether its device is lost or short of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stage_server.core.engine import DeviceLostError
from stagecoach.contract.errors import DeviceMemoryError

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a bare RuntimeError, when the machine has none left."""


@contextmanager
def device_failures(device: torch.device) -> Iterator[None]:
    """Names the failures of a device that are raised inside; others pass as they are.

    Raises:
        DeviceMemoryError: There was no memory for what was computed; the device goes on.
        DeviceLostError: The device reports an error that stays, as CUDA does after a fault.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise _too_little_memory(device) from error
    except Exception as error:  # torch tells some by their text alone
        if _CPU_OUT_OF_MEMORY in str(error):
            raise _too_little_memory(device) from error
        if isinstance(error, torch.AcceleratorError) or _is_lost(device):
            raise DeviceLostError(f"{device}: {type(error).__name__}") from error
        raise


def _too_little_memory(device: torch.device) -> DeviceMemoryError:
    return DeviceMemoryError(f"{device} has no memory for the activations of this micro-batch")


def _is_lost(device: torch.device) -> bool:
    """True when even waiting for the device fails, which tells a fault of it from one of ours."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except torch.AcceleratorError:
        return True
    return False
