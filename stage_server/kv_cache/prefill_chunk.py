"""Attention of a sequence that runs several tokens, behind whatever it has run before.

Fused kernels of torch attend most chunks. The key heads of grouped-query attention are expanded by
a stride of zero. A chunk behind a context needs no mask on CUDA, where kernels know that its last
row sees everything. A kernel of ours attends the others, whose scores are capped, or whose windows
would need a mask; where there is none, torch does so in several operations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.kv_pool import KvViews, LayerKv
from stage_server.kv_cache.scoring import (
    Scoring,
    additive_mask,
    attention,
    lower_right_attention,
    takes_lower_right,
)
from stage_server.kv_cache.side_by_side import place_side_by_side


class NewKv(NamedTuple):
    """Keys and values of a micro-batch's rows, `[num_tokens, num_kv_heads, head_dim]` each."""

    keys: torch.Tensor
    values: torch.Tensor


class PrefillChunk:
    """A sequence that runs several tokens.

    Args:
        first_row: Where its rows begin in the micro-batch.
        piece: Slice of the chunk.
        block_table: Blocks of the chunk's sequence.
        table: The same, int64 `[num_blocks]` on the device.
        block_size: Tokens a block.
        kernels: The device's; None: it has none.
    """

    def __init__(
        self,
        first_row: int,
        piece: SequenceSlice,
        block_table: Sequence[int],
        table: torch.Tensor,
        block_size: int,
        kernels: Kernels | None,
    ) -> None:
        self._kernels = kernels
        self._block_size = block_size
        self._rows = slice(first_row, first_row + piece.num_tokens)
        self._start, self._end = piece.start_position, piece.end_position
        self._place = place_side_by_side(block_table, block_size, self._end)
        self._table = table
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend_into(
        self,
        output: torch.Tensor,
        query: torch.Tensor,
        new: NewKv | None,
        layer: LayerKv,
        scoring: Scoring,
    ) -> None:
        """Attends this sequence's rows of `query` and writes those rows of `output`.

        Args:
            output: `[num_tokens, num_heads, head_dim]`, of the micro-batch.
            query: As `output`.
            new: Keys and values of the micro-batch; None: they are in the pool alone.
            layer: The pool's; has the new keys and values already.
            scoring: How the layer scores.
        """
        kernels, is_capped = self._kernels, scoring.softcap is not None
        if kernels is None or not (
            is_capped or (kernels.has_tensor_cores and self._needs_mask(query, scoring))
        ):
            output[self._rows] = self._attend(query[self._rows], new, layer, scoring)
            return
        kernels.prefill(
            query,
            layer.keys.rows,
            layer.values.rows,
            table=self._table,
            first_row=self._rows.start,
            num_tokens=self._end - self._start,
            start_position=self._start,
            block_size=self._block_size,
            scaling=scoring.scaling,
            sliding_window=scoring.sliding_window,
            softcap=scoring.softcap,
            output=output,
        )

    def _needs_mask(self, query: torch.Tensor, scoring: Scoring) -> bool:
        """Whether torch has to be told what is seen, even of scores that are not capped."""
        is_windowed = self._window(scoring) is not None
        return is_windowed or (self._start > 0 and not takes_lower_right(query))

    def _window(self, scoring: Scoring) -> int | None:
        """The sliding window; None: everything is in it."""
        window = scoring.sliding_window
        return None if window is None or window >= self._end else window

    def _attend(
        self, query: torch.Tensor, new: NewKv | None, layer: LayerKv, scoring: Scoring
    ) -> torch.Tensor:
        """Attends this sequence's rows by operations of torch."""
        if self._start or new is None:
            key, value = self._gather(layer.keys), self._gather(layer.values)
        else:
            key, value = new.keys[self._rows], new.values[self._rows]
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        # [num_kv_heads, num_groups, num_tokens or end_position, head_dim] each.
        query = query.transpose(0, 1).view(num_kv_heads, -1, num_tokens, head_dim)
        key, value = _expand_heads(key, num_heads), _expand_heads(value, num_heads)
        if scoring.softcap is not None or self._needs_mask(query, scoring):
            mask = self._mask(self._window(scoring), query)
            attended = attention(query, key, value, mask, scoring)
        elif self._start == 0:
            attended = attention(query, key, value, None, scoring, is_causal=True)
        else:
            attended = lower_right_attention(query, key, value, scoring.scaling)
        return attended.reshape(num_heads, num_tokens, head_dim).transpose(0, 1)

    def _gather(self, cache: KvViews) -> torch.Tensor:
        """`[end_position, num_kv_heads, head_dim]`."""
        if self._place is not None:
            return cache.rows[self._place]
        return cache.blocks.index_select(0, self._table).flatten(0, 1)[: self._end]

    def _mask(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        """`[num_tokens, end_position]`, made once a step."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window, query)
        return self._masks[window]

    def _make_mask(self, window: int | None, query: torch.Tensor) -> torch.Tensor:
        # [num_tokens, 1] and [end_position].
        own = torch.arange(self._start, self._end, device=query.device)[:, None]
        positions = torch.arange(self._end, device=query.device)
        is_seen = positions <= own  # [num_tokens, end_position]
        if window is not None:
            is_seen &= positions > own - window
        return additive_mask(is_seen, query.dtype)


def _expand_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Repeats each head for the query heads that share it, without a copy.

    `[length, num_kv_heads, head_dim]` -> `[num_kv_heads, num_groups, length, head_dim]`.
    """
    num_groups = num_heads // tensor.shape[1]
    return tensor.transpose(0, 1).unsqueeze(1).expand(-1, num_groups, -1, -1)
