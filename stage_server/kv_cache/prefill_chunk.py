"""Attention of a sequence that runs several tokens, behind whatever it has run before.

Fused kernels of torch attend most chunks. The key heads of grouped-query attention are expanded by
a stride of zero. A chunk behind a context needs no mask on CUDA, where kernels know that its last
row sees everything. A kernel of ours attends the others, whose scores are capped, whose windows
would need a mask, or whose keys and values would have to be converted; where there is none, torch
does so in several operations. On a CPU it then attends behind a context in tiles, which a core's
cache holds; a card converts all of them before, for the sake of the fused kernels.
"""

from collections.abc import Sequence
from functools import partial

import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.coded_heads import decoded
from stage_server.kv_cache.kv_pool import KvViews, LayerKv, NewKv
from stage_server.kv_cache.kv_tiles import KvTiles, attention_in_tiles
from stage_server.kv_cache.scoring import (
    Scoring,
    additive_mask,
    attention,
    lower_right_attention,
    takes_lower_right,
)
from stage_server.kv_cache.side_by_side import place_side_by_side

_TILED_DEVICE = "cpu"
"""Type of the devices on which converted keys and values are read in tiles."""

_MAX_SCORES = 1 << 23
"""Scores that attention in tiles keeps at once: 32 MiB."""


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
        self._tiles = KvTiles(table.unsqueeze(0), block_size, self._place)
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
        kernels = self._kernels
        if kernels is None or not (
            scoring.softcap is not None
            or scoring.sinks is not None
            or (
                kernels.has_tensor_cores
                and (self._needs_mask(query, scoring) or not layer.holds(query.dtype))
            )
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
            sinks=scoring.sinks,
            output=output,
            key_scales=layer.keys.scales,
            value_scales=layer.values.scales,
        )

    def _needs_mask(self, query: torch.Tensor, scoring: Scoring) -> bool:
        """Whether torch has to be told what is seen, even of scores that are not capped."""
        if self._window(scoring) is not None:
            return True
        has_sinks = scoring.sinks is not None  # which no kernel of torch takes
        return self._start > 0 and (has_sinks or not takes_lower_right(query))

    def _window(self, scoring: Scoring) -> int | None:
        """The sliding window; None: everything is in it."""
        window = scoring.sliding_window
        return None if window is None or window >= self._end else window

    def _attend(
        self, query: torch.Tensor, new: NewKv | None, layer: LayerKv, scoring: Scoring
    ) -> torch.Tensor:
        """Attends this sequence's rows by operations of torch."""
        is_tiled = query.device.type == _TILED_DEVICE and not layer.holds(query.dtype)
        if self._start and is_tiled:
            return self._attend_in_tiles(query, layer, scoring)
        if self._start or new is None:
            key, value = layer.read(partial(self._gather, dtype=query.dtype))
        else:
            key, value = (rows[self._rows].to(query.dtype) for rows in new)
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        # [num_kv_heads, num_groups, num_tokens or end_position, head_dim] each.
        query = query.transpose(0, 1).view(num_kv_heads, -1, num_tokens, head_dim)
        key, value = _expand_heads(key, num_heads), _expand_heads(value, num_heads)
        sinks = None
        if scoring.sinks is not None:
            sinks = scoring.sinks.view(num_kv_heads, -1, 1, 1)
        if scoring.softcap is not None or self._needs_mask(query, scoring):
            mask = self._mask(self._window(scoring), query)
            attended = attention(query, key, value, mask, scoring, sinks=sinks)
        elif self._start == 0:
            attended = attention(query, key, value, None, scoring, is_causal=True, sinks=sinks)
        else:
            attended = lower_right_attention(query, key, value, scoring.scaling)
        return attended.reshape(num_heads, num_tokens, head_dim).transpose(0, 1)

    def _attend_in_tiles(
        self, query: torch.Tensor, layer: LayerKv, scoring: Scoring
    ) -> torch.Tensor:
        """Attends rows behind a context, as many at once as their scores have room."""
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = layer.keys.rows.shape[1]
        mask = self._mask(self._window(scoring), query)
        if self._window(scoring) is None:
            mask = mask[:, self._start :]  # of the context all is seen
        step = max(_MAX_SCORES // (num_heads * self._end), 1)
        outputs = []
        for first in range(0, num_tokens, step):
            rows = query[first : first + step]
            # [1, num_kv_heads, num_groups, num_rows, head_dim]
            grouped = rows.view(1, len(rows), num_kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)
            attended = attention_in_tiles(
                grouped, layer, self._tiles, self._end, mask[first : first + step], scoring
            )
            outputs.append(attended.permute(0, 3, 1, 2, 4).reshape(rows.shape))
        return torch.cat(outputs)

    def _gather(self, cache: KvViews, dtype: torch.dtype) -> torch.Tensor:
        """Returns keys or values of the sequence, `[end_position, num_kv_heads, head_dim]`."""
        numbers = self._read(cache.rows)
        if cache.scales is None:
            return numbers.to(dtype)
        return decoded(numbers, self._read(cache.scales), dtype)

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        """`[num_slots, num_kv_heads, ...]` -> `[end_position, num_kv_heads, ...]`."""
        if self._place is not None:
            return rows[self._place]
        blocks = rows.view(-1, self._block_size, *rows.shape[1:])
        return blocks.index_select(0, self._table).flatten(0, 1)[: self._end]

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
