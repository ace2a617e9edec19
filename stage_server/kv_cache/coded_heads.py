"""Keys and values in 8 bits: each head of a token has codes and a scale of its own."""

import math
from typing import NamedTuple

import torch

MAX_CODE = 127
"""The largest code; the least is its negative."""


class CodedHeads(NamedTuple):
    """Heads whose numbers are `scale * code`."""

    codes: torch.Tensor
    """int8 `[..., head_dim]`."""
    scales: torch.Tensor
    """float32 `[...]`. Infinite or NaN where the head has such a number, so that none is lost."""


def coded(heads: torch.Tensor) -> CodedHeads:
    """Rounds heads to the nearest codes.

    Args:
        heads: `[..., head_dim]`, of any dtype.
    """
    largest = torch.linalg.vector_norm(heads, math.inf, dim=-1, dtype=torch.float32)
    scales = largest / MAX_CODE
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    # One copy in float32, rounded as the kernel rounds, which has no rounding to even.
    codes = torch.div(heads, steps).add_(0.5).floor_()
    return CodedHeads(codes.to(torch.int8), scales)


def decoded(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the numbers of heads; arguments as `CodedHeads`."""
    return (codes * scales.unsqueeze(-1)).to(dtype)
