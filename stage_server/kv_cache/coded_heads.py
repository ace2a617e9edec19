"""Keys and values in 8 bits: each head of a token has codes, a scale and an offset of its own."""

from typing import NamedTuple

import torch

MAX_CODE = 127
"""The largest code; the least is its negative."""


class CodedHeads(NamedTuple):
    """Heads whose numbers are `scale * code + offset`."""

    codes: torch.Tensor
    """int8 `[..., head_dim]`."""
    scales: torch.Tensor
    """float16 `[..., 2]`: scale and offset. One of them is infinite or NaN, and so all numbers are
    read as NaN, where the head has such a number, where its centre is beyond float16, or half its
    range beyond 127 times that: none is lost."""


def coded(heads: torch.Tensor) -> CodedHeads:
    """Rounds heads to the nearest codes.

    Args:
        heads: `[..., head_dim]`, of any dtype.
    """
    low, high = (each.float() for each in heads.aminmax(dim=-1))
    offsets = ((low + high) / 2).half().float()
    # From the rounded offset on, so that its rounding costs nothing but a little of the scale.
    scales = (torch.maximum(high - offsets, offsets - low) / MAX_CODE).half().float()
    steps = torch.where(scales > 0, scales, 1.0)
    # One copy in float32, rounded as the kernel rounds, which has no rounding to even.
    codes = torch.sub(heads, offsets.unsqueeze(-1)).div_(steps.unsqueeze(-1)).add_(0.5).floor_()
    codes = codes.clamp_(-MAX_CODE, MAX_CODE).to(torch.int8)
    return CodedHeads(codes, torch.stack((scales, offsets), dim=-1).half())


def decoded(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the numbers of heads; arguments as `CodedHeads`."""
    scale, offset = scales.float().unsqueeze(-2).unbind(-1)
    return (codes * scale).add_(offset).to(dtype)
