"""Copies from a device to the host, and moments in the work of a device, that nobody waits for."""

from collections.abc import Sequence
from functools import lru_cache

import torch

POLL_S = 50e-6
"""How often a card is asked whether it is done. A kernel's timers are about as exact."""


class Moment:
    """When a card has done everything that it was given so far. CUDA only."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `wait` does not wait. Never raises."""
        try:
            is_over = self._event.query()  # type: ignore[no-untyped-call]
        except torch.AcceleratorError:  # and `wait` says so
            is_over = True
        return 0.0 if is_over else POLL_S

    def wait(self) -> None:
        """Waits for the moment.

        Raises:
            torch.AcceleratorError: The card reports an error, of whatever it did before.
        """
        self._event.synchronize()


class HostCopy:
    """A tensor on its way to the host, behind everything that the device has to do before it.

    On CUDA it goes to pinned memory and nobody waits. The device may be given more work, which
    begins after the copy.

    Args:
        tensor: On CUDA, or on the CPU, where it is its own copy.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = copy_to_host(tensor)
        self._end = Moment() if tensor.device.type == "cuda" else None

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `wait` does not wait. Never raises."""
        return 0.0 if self._end is None else self._end.due_in_s()

    def wait(self) -> torch.Tensor:
        """Waits for the device and returns the copy.

        Raises:
            torch.AcceleratorError: The device reports an error, of whatever it did before.
        """
        if self._end is not None:
            self._end.wait()
        return self._host


class HostCopies:
    """Several tensors on their way to the host in one copy.

    Args:
        tensors: On one device, of floats of 32 bits or of integers that fit 32 bits.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._words: HostCopy | None = None
        if not tensors or tensors[0].device.type == "cpu":
            return
        words = [
            part.flatten().view(torch.int32) if part.is_floating_point() else part.flatten().int()
            for part in tensors
        ]
        self._words = HostCopy(torch.cat(words))

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `wait` does not wait. Never raises."""
        return 0.0 if self._words is None else self._words.due_in_s()

    def wait(self) -> Sequence[torch.Tensor]:
        """Waits for the device and returns the copies, in their order.

        Raises:
            torch.AcceleratorError: The device reports an error, of whatever it did before.
        """
        if self._words is None:
            return self._tensors
        fetched = self._words.wait().split_with_sizes([part.numel() for part in self._tensors])
        return [
            (part.view(torch.float32) if like.is_floating_point() else part.long()).view(like.shape)
            for part, like in zip(fetched, self._tensors, strict=True)
        ]


def copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy in pinned memory, which holds its values from the next `Moment` on.

    Args:
        tensor: On CUDA, or on the CPU, where it is its own copy.
    """
    if tensor.device.type != "cuda":
        return tensor
    # torch keeps pinned memory from its next owner until this copy is through.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def copies_past(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Copies tensors to the host, past what their device was given since, and waits for that.

    Args:
        tensors: On one device, which has computed them: the host has waited for a `Moment` after
            them. On the CPU each is its own copy.

    Raises:
        torch.AcceleratorError: The device reports an error, of whatever it did before.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return tensors
    stream = _side_stream(tensors[0].device)
    with torch.cuda.stream(stream):
        for tensor in tensors:
            tensor.record_stream(stream)  # whose memory nobody else gets before the copy is through
        copies = [copy_to_host(tensor) for tensor in tensors]
        end = Moment()
    end.wait()
    return copies


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a card that waits for no other work of it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
