"""Takes the memory of a device for real, so that what it computes then runs out of it.

On a card, tensors take it. A CPU has none of its own: there the address space of this process is
bounded at what it has, with which its allocator fails as it does on a machine that is full.
"""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

_PAGE_BYTES = 20 << 20
"""In which torch's allocator takes memory of a card for large tensors."""

_SMALLEST_BYTES = 512
"""Of a block of torch's allocator."""

_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 1 << 20
"""From `malloc.h`: the size from which the C library maps a block by itself."""


def prepare(device: torch.device) -> None:
    """Lets large blocks that are freed go back to the system; once, before anything is loaded.

    The C library keeps such blocks on a CPU, out of which it serves others in a full machine.
    """
    if device.type != "cuda":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def memory_taken(device: torch.device, left_bytes: int) -> AbstractContextManager[None]:
    """Leaves a device so little memory for the time of a block.

    Args:
        device: CUDA or the CPU.
        left_bytes: What is left, besides holes between tensors; 0: on CUDA, not even those.

    Raises:
        torch.OutOfMemoryError: Something else took memory of the card at the same time.
    """
    return _card_taken(device, left_bytes) if device.type == "cuda" else _address_space(left_bytes)


@contextmanager
def _card_taken(device: torch.device, left_bytes: int) -> Iterator[None]:
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    num_pages = max(0, free_bytes - left_bytes) // _PAGE_BYTES
    taken = [torch.empty(num_pages * _PAGE_BYTES, dtype=torch.uint8, device=device)]
    size = _PAGE_BYTES
    while not left_bytes and size >= _SMALLEST_BYTES:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.empty_cache()


@contextmanager
def _address_space(left_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + left_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
