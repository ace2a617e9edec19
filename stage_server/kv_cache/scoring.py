"""Scores of attention: what a layer does with them, which are masked, and the sum that follows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

_MASK_ALIGNMENT = 8
"""Elements; CUDA's kernels copy a mask whose rows do not begin at a multiple of these."""

_HEAD_ALIGNMENT = 8
_MAX_HEAD_DIM = 256
"""Most elements of a head that flash attention and memory-efficient attention take as they are."""

_FLASH_CAPABILITY = (8, 0)
"""Lowest compute capability that flash attention runs on."""

LOWER_RIGHT = 2
"""`torch.nn.attention.bias.CausalVariant.LOWER_RIGHT`; that module imports torch's compiler."""


class Scoring(NamedTuple):
    """What a layer does with the scores of its attention."""

    scaling: float
    """Factor on the scores."""
    sliding_window: int | None
    """A position sees this many positions, itself included; None: all."""
    softcap: float | None
    """Scores become `softcap * tanh(score / softcap)`; None: unchanged."""
    sinks: torch.Tensor | None = None
    """`[num_heads]`: a score of each head beside those of the positions, which has no value; None:
    there is none."""


def additive_mask(is_seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to scores: 0 where `is_seen`, else minus infinity.

    Args:
        is_seen: bool `[..., num_positions]`.
        dtype: Dtype of the query, as fused kernels take no other.

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
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attends `[..., num_queries, head_dim]` to keys and values `[..., num_positions, head_dim]`.

    Args:
        query: The queries.
        key: The keys, in the dtype of the queries.
        value: As `key`.
        mask: `[..., num_queries, num_positions]` of `additive_mask`; None: all is seen, or, where
            `is_causal`, the positions up to one's own.
        scoring: How the layer scores; its window is in the mask.
        is_causal: Whether there are as many queries as positions, and each sees up to its own.
        sinks: Sinks of the layer, shaped so that they spread to `[..., num_queries, 1]`.
    """
    if sinks is not None and scoring.softcap is None and query.device.type == "cpu":
        return _attention_beside_sinks(query, key, value, mask, scoring, is_causal, sinks)
    if scoring.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scaling, is_causal=is_causal
        )
    scores = torch.matmul(query, key.transpose(-1, -2)) * scoring.scaling
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores += mask
    if is_causal:
        is_seen = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        scores += additive_mask(is_seen, scores.dtype)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights[..., : key.shape[-2]], value)


def _attention_beside_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    is_causal: bool,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """As `attention`, by the fused kernel of CPUs, which tells what it divided by.

    A sink takes its share of the weights from all positions alike: the output is what it is
    without, times the share that is left.
    """
    output, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scoring.scaling
    )
    # [..., num_queries]: logarithms of the sums over the positions
    left = torch.sigmoid(log_sums.float() - sinks.squeeze(-1).float()).unsqueeze(-1)
    attended: torch.Tensor = (output * left).to(query.dtype)
    return attended


def takes_lower_right(query: torch.Tensor) -> bool:
    """Returns whether `lower_right_attention` takes such queries, `[..., head_dim]`."""
    head_dim = query.shape[-1]
    return query.is_cuda and head_dim % _HEAD_ALIGNMENT == 0 and head_dim <= _MAX_HEAD_DIM


def lower_right_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attends queries whose last one sees everything, and each other one position less.

    Calls the kernels that torch chooses for `torch.nn.attention.bias.causal_lower_right`, without
    that bias, which takes the memory of two masks.

    Args:
        query: `[num_sequences, num_heads, num_queries, head_dim]`; `takes_lower_right` of it.
        key: `[num_sequences, num_heads, num_positions, head_dim]`, no fewer positions.
        value: As `key`.
        scaling: Factor on the scores.

    Returns:
        As `query`.
    """
    output: torch.Tensor
    is_narrow = query.dtype != torch.float32
    if is_narrow and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY:
        output = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal=True, return_debug_mask=False, scale=scaling
        )[0]
        return output
    output = torch.ops.aten._efficient_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        bias=None,
        cu_seqlens_q=None,
        cu_seqlens_k=None,
        max_seqlen_q=None,
        max_seqlen_k=None,
        dropout_p=0.0,
        custom_mask_type=LOWER_RIGHT,
        compute_log_sumexp=False,
        scale=scaling,
        seqlen_k=None,
    )[0]
    return output.transpose(1, 2)
