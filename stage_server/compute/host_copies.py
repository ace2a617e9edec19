"""Copies from a device to the host."""

import torch


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Waits for a tensor; returns it in pinned memory where it is on a card, else itself."""
    if tensor.device.type == "cpu":
        return tensor
    is_pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned).copy_(tensor)
