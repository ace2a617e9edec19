"""The seam between layers and KV memory: layers call `Attention.attend`, the engine provides it.

All sequences of a micro-batch lie packed in one row of tokens; only the `Attention` knows which
token belongs to which sequence.
"""

from typing import Protocol, runtime_checkable

import torch


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
        sinks: torch.Tensor | None = None,
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
            sinks: `[num_heads]`: a score of each head beside those of the positions, which takes
                its share of the weights and has no value; None: there is none.

        Returns:
            `[num_tokens, num_heads, head_dim]`.
        """
        ...


@runtime_checkable
class FusedAttention(Attention, Protocol):
    """An attention that rotates as well, where the device has kernels of ours."""

    def rotate_and_attend(
        self,
        layer_index: int,
        heads: torch.Tensor,
        cos: torch.Tensor,
        swapped_sin: torch.Tensor,
        *,
        head_norm: torch.Tensor | None,
        eps: float,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """Norms and rotates queries and keys, stores keys and values, and attends.

        Args:
            layer_index: Local layer, from 0.
            heads: `[num_tokens, num_heads + 2 * num_kv_heads, head_dim]`, contiguous: queries,
                keys and values, without positions.
            cos: `[num_tokens, head_dim]` of `RotaryRows`.
            swapped_sin: `[num_tokens, head_dim]` of `RotaryRows`.
            head_norm: `[num_heads + num_kv_heads, head_dim]`: weights of the RMS norm of each
                query and key; None: there is none.
            eps: Epsilon of that norm.
            scaling: As in `Attention.attend`.
            sliding_window: As in `Attention.attend`.

        Returns:
            `[num_tokens, num_heads, head_dim]`, contiguous.
        """
        ...
