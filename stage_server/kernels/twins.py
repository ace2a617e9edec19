"""What the kernels between a layer's matrices compute, in operations of torch: slow and obvious."""

from typing import NamedTuple

import torch
from torch.nn import functional


class RotatedHeads(NamedTuple):
    """Heads of a micro-batch's rows, `[num_tokens, num_heads or num_kv_heads, head_dim]` each."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def rotate(
    heads: torch.Tensor,
    cos: torch.Tensor,
    swapped_sin: torch.Tensor,
    *,
    head_norm: torch.Tensor | None,
    eps: float,
    num_kv_heads: int,
) -> RotatedHeads:
    """Norms and rotates queries and keys; arguments as of `rotate_and_store`."""
    num_rotated = heads.shape[1] - num_kv_heads
    rotated, values = heads[:, :num_rotated], heads[:, num_rotated:]
    if head_norm is not None:
        rotated = functional.rms_norm(rotated, rotated.shape[-1:], None, eps) * head_norm
    swapped = rotated.roll(rotated.shape[-1] // 2, -1)
    rotated = rotated * cos.unsqueeze(1) + swapped * swapped_sin.unsqueeze(1)
    num_heads = num_rotated - num_kv_heads
    return RotatedHeads(rotated[:, :num_heads], rotated[:, num_heads:], values)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of `[num_tokens, 2 * size]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, *, scale: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `hidden + scale * update`, and the RMS norm of that."""
    added = torch.add(hidden, update, alpha=scale)
    return added, functional.rms_norm(added, weight.shape, weight, eps)
