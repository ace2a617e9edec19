"""Decode attention by operations of torch, on the CPU and as the twin of the kernel.

Each group's KV is gathered into one tensor, or, where it has to be converted, read in tiles.

Grouped-query attention (arXiv:2305.13245) needs no copies of the keys: the query heads that share
a key head take the place of the query length.
"""

from collections.abc import Sequence

import torch

from stage_server.kv_cache.kv_pool import KvViews, LayerKv
from stage_server.kv_cache.kv_tiles import KvTiles, attention_in_tiles
from stage_server.kv_cache.scoring import Scoring, additive_mask, attention
from stage_server.kv_cache.side_by_side import place_side_by_side
from stage_server.kv_cache.step_indices import DecodeIndices


class GatheredDecodes:
    """Sequences that run one token each, padded to the blocks of the longest.

    Args:
        indices: Indices of the step's sequences that decode.
        lengths: Positions of each.
        block_tables: Blocks of each.
        block_size: Tokens a block.
    """

    def __init__(
        self,
        indices: DecodeIndices,
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
    ) -> None:
        self._indices = indices
        self._min_length, self._max_length = min(lengths), max(lengths)
        self._place = None
        if len(lengths) == 1:
            self._place = place_side_by_side(block_tables[0], block_size, lengths[0])
        self._tiles = KvTiles(indices.tables.view(len(lengths), -1), block_size, self._place)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def attend_into(
        self, output: torch.Tensor, query: torch.Tensor, layer: LayerKv, scoring: Scoring
    ) -> None:
        """Attends these sequences' rows of `query` and writes those rows of `output`."""
        rows = self._indices.rows
        output[rows] = self.attend(query[rows], layer, scoring)

    def attend(self, query: torch.Tensor, layer: LayerKv, scoring: Scoring) -> torch.Tensor:
        """Attends `[num_sequences, num_heads, head_dim]`, of these sequences alone."""
        num_seqs, num_heads, head_dim = query.shape
        num_kv_heads = layer.keys.rows.shape[1]
        # [num_seqs, num_kv_heads, num_groups, head_dim]
        query = query.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
        # [num_seqs, 1, 1, max_length]
        mask = self._mask(scoring.sliding_window, query.dtype)
        if layer.holds(query.dtype):
            # [num_seqs, num_kv_heads, max_length, head_dim] each
            keys, values = layer.read(self._gather)
            sinks = None if scoring.sinks is None else scoring.sinks.view(num_kv_heads, -1, 1)
            output = attention(query, keys, values, mask, scoring, sinks=sinks)
        else:
            output = attention_in_tiles(
                query.unsqueeze(3),
                layer,
                self._tiles,
                self._max_length,
                None if mask is None else mask.unsqueeze(1),
                scoring,
            )
        return output.reshape(num_seqs, num_heads, head_dim)

    def _gather(self, cache: KvViews) -> torch.Tensor:
        """`[num_seqs, num_kv_heads, max_length, head_dim]`."""
        if self._place is not None:
            return cache.heads.narrow(2, self._place.start, self._max_length)  # a view
        # [num_seqs * num_blocks, block_size, num_kv_heads, head_dim]
        gathered = cache.blocks.index_select(0, self._indices.tables)
        # [num_seqs, num_blocks * block_size, num_kv_heads, head_dim]
        gathered = gathered.view(len(self._indices.rows), -1, *cache.rows.shape[1:])
        return gathered[:, : self._max_length].transpose(1, 2)

    def _mask(self, sliding_window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """`[num_seqs, 1, 1, max_length]`; None when everything is seen. Made once a step."""
        if sliding_window not in self._masks:
            self._masks[sliding_window] = self._make_mask(sliding_window, dtype)
        return self._masks[sliding_window]

    def _make_mask(self, sliding_window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        in_window = sliding_window is None or sliding_window >= self._max_length
        if in_window and self._min_length == self._max_length:
            return None
        lengths = self._indices.lengths[:, None]  # [num_seqs, 1]
        positions = torch.arange(self._max_length, device=lengths.device)  # [max_length]
        is_seen = positions < lengths  # [num_seqs, max_length]
        if sliding_window is not None:
            is_seen &= positions >= lengths - sliding_window
        return additive_mask(is_seen[:, None, None], dtype)
