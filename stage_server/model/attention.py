"""The seam between layers and KV memory: layers call `Attention.attend`, the engine provides it.

All sequences of a micro-batch lie packed in one row of tokens; only the `Attention` knows which
token belongs to which sequence. transformers' modules reach it through an attention function that
is registered once, under `IMPLEMENTATION`.
"""

from typing import Protocol

import torch
from torch import nn
from transformers import AttentionInterface

IMPLEMENTATION = "stagecoach"
"""`_attn_implementation` of the configurations of our layers."""


class Attention(Protocol):
    """Attention of one micro-batch. Called from the model thread, layer by layer in order."""

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Stores key and value, and attends every query to its own sequence up to itself.

        In every tensor the last two dimensions lie close together; rows may be farther apart.

        Args:
            layer_index: Local layer, from 0.
            query: `[num_tokens, num_heads, head_dim]`, with its position already in it.
            key: `[num_tokens, num_kv_heads, head_dim]`, likewise.
            value: `[num_tokens, num_kv_heads, head_dim]`.
            scaling: Factor on the scores.
            sliding_window: A position sees this many positions, itself included; None: all.
            softcap: Scores become `softcap * tanh(score / softcap)`; None: unchanged.

        Returns:
            `[num_tokens, num_heads, head_dim]`.
        """
        ...


def attend_from_transformers(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attention: Attention,
    first_layer: int,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Implements the signature that transformers' attention modules call.

    Args:
        module: The attention module; has its global `layer_idx`.
        query: `[1, num_heads, num_tokens, head_dim]`.
        key: `[1, num_kv_heads, num_tokens, head_dim]`.
        value: As `key`.
        attention_mask: None: the attention makes its own.
        attention: Passed through the decoder layer.
        first_layer: Global index of the stage's first layer, passed likewise.
        scaling: As in `Attention.attend`.
        sliding_window: As in `Attention.attend`.
        softcap: As in `Attention.attend`.
        **_: What concerns training and other implementations.

    Returns:
        `[1, num_tokens, num_heads, head_dim]`, and no weights.
    """
    assert attention_mask is None, "the attention makes its own masks"
    layer_idx = module.layer_idx
    assert isinstance(layer_idx, int), "every attention module knows its layer"
    output = attention.attend(
        layer_idx - first_layer,
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return output.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, attend_from_transformers)
