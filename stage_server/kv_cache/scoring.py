"""Scores of attention: what a layer does with them, which are masked, and the sum that follows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

_MASK_ALIGNMENT = 8
"""Elements; CUDA's kernels copy a mask whose rows do not begin at a multiple of these."""


class Scoring(NamedTuple):
    """What a layer does with the scores of its attention."""

    scaling: float
    """Factor on the scores."""
    sliding_window: int | None
    """A position sees this many positions, itself included; None: all."""
    softcap: float | None
    """Scores become `softcap * tanh(score / softcap)`; None: unchanged."""


def additive_mask(is_seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to scores: 0 where `is_seen`, else minus infinity.

    Args:
        is_seen: bool `[..., num_positions]`.
        dtype: Of the query, as fused kernels take no other.

    Returns:
        `[..., num_positions]`; its rows begin where fused kernels read them in place.
    """
    num_positions = is_seen.shape[-1]
    padding = -num_positions % _MASK_ALIGNMENT
    mask = torch.full(
        (*is_seen.shape[:-1], num_positions + padding),
        float("-inf"),
        dtype=dtype,
        device=is_seen.device,
    )[..., :num_positions]
    return mask.masked_fill_(is_seen, 0)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attends `[..., num_queries, head_dim]` to keys and values `[..., num_positions, head_dim]`.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        mask: `[..., num_queries, num_positions]` of `additive_mask`, or a causal bias of torch;
            None: all is seen, or, where `is_causal`, the positions up to one's own.
        scoring: Its window is in the mask.
        is_causal: Whether there are as many queries as positions, and each sees up to its own.
    """
    if scoring.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scaling, is_causal=is_causal
        )
    scores = torch.matmul(query, key.transpose(-1, -2)) * scoring.scaling
    scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores += mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value)
