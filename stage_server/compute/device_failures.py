"""Tells from an exception of a computation whether its device is lost or short of memory."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stage_server.core.engine import DeviceLostError
from stagecoach.contract.errors import DeviceMemoryError

_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # What cuBLAS says when it finds no memory for its handle.
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""What torch says, in a bare RuntimeError, when there is no memory left."""

_CUDA_NO_MEMORY = 2
"""`cudaErrorMemoryAllocation`: also of a kernel that is loaded at its first launch."""


@contextmanager
def device_failures(device: torch.device) -> Iterator[None]:
    """Names the failures of a device that are raised inside; others pass as they are.

    Raises:
        DeviceMemoryError: There was no memory for what was computed; the device goes on. What was
            computed before is given back.
        DeviceLostError: The device reports an error that stays, as CUDA does after a fault.
    """
    try:
        yield
    except Exception as error:  # torch tells some by their text alone
        if _is_short_of_memory(error):
            _drop_activations(error)
            if not _is_lost(device):
                raise DeviceMemoryError(
                    f"{device} has no memory for the activations of this micro-batch"
                ) from error
        elif not isinstance(error, torch.AcceleratorError) and not _is_lost(device):
            raise
        raise DeviceLostError(f"{device}: {type(error).__name__}") from error


def _is_short_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        # torch sets the code on what it raises itself.
        return getattr(error, "error_code", None) == _CUDA_NO_MEMORY
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def _drop_activations(error: BaseException) -> None:
    """Lets go of the tensors in the frames that the exception came through."""
    while error.__context__ is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    traceback.clear_frames(error.__traceback__)


def _is_lost(device: torch.device) -> bool:
    """True when even waiting for the device fails, which tells a fault of it from one of ours.

    Memory that no tensor holds any more goes back to the device, in large pieces.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:  # whatever it is, the device does not answer
        return True
    try:
        torch.cuda.empty_cache()
    except Exception as error:
        # torch refuses while it believes that a graph is being recorded; the device is well.
        return isinstance(error, torch.AcceleratorError)
    return False
