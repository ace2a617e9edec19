"""Copies from a device to the host, and moments in the work of a device, that nobody waits for."""

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
        self._host = tensor
        self._end: Moment | None = None
        if tensor.device.type == "cuda":
            # torch keeps pinned memory from its next owner until this copy is through.
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host = host.copy_(tensor, non_blocking=True)
            self._end = Moment()

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
