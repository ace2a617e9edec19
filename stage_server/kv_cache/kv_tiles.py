"""Attention to KV in another format than the query's: converted tile by tile, never as a whole.

Scores of all positions are kept between the two passes, so the softmax is a plain one.
"""

from collections.abc import Iterator

import torch

from stage_server.kv_cache.kv_pool import KvViews, LayerKv
from stage_server.kv_cache.scoring import Scoring

_CPU_TILE_ELEMENTS = 1 << 18
"""Keys or values that a CPU converts at once: 1 MiB in float32, which stays in a core's cache."""

_CARD_TILE_ELEMENTS = 1 << 24
"""The same of a card, 64 MiB: smaller tiles would be launched for longer than they are computed."""


class KvTiles:
    """The KV of sequences, read a few blocks at a time.

    Args:
        tables: int64 `[num_sequences, num_blocks]`: blocks of each, on the device.
        block_size: Tokens a block.
        place: Where the one sequence lies in one piece in the pool's tokens; None: there are
            several, or its blocks lie apart.
    """

    def __init__(self, tables: torch.Tensor, block_size: int, place: slice | None) -> None:
        self._tables = tables
        self._block_size = block_size
        self._place = place

    def spans(self, cache: KvViews, num_positions: int) -> Iterator[slice]:
        """Yields the positions `[0, num_positions)` in tiles of whole blocks.

        Args:
            cache: What is to be read.
            num_positions: Positions of the longest sequence.
        """
        is_cpu = cache.blocks.device.type == "cpu"
        tile_elements = _CPU_TILE_ELEMENTS if is_cpu else _CARD_TILE_ELEMENTS
        block_elements = len(self._tables) * cache.blocks[0].numel()
        step = max(tile_elements // block_elements, 1) * self._block_size
        for start in range(0, num_positions, step):
            yield slice(start, min(start + step, num_positions))

    def numbers(self, cache: KvViews, span: slice) -> torch.Tensor:
        """Converts the keys or values of a tile.

        Returns:
            float32 `[num_sequences, num_kv_heads, num_positions, head_dim]`.
        """
        # A product of several sequences copies matrices that lie between each other; one of a
        # single sequence reads them as they lie.
        is_one = len(self._tables) == 1
        layout = torch.preserve_format if is_one else torch.contiguous_format
        numbers = self._read(cache.rows, span).to(torch.float32, memory_format=layout)
        if cache.scales is not None:
            scale, offset = self._read(cache.scales, span).float().unsqueeze(-2).unbind(-1)
            numbers.mul_(scale).add_(offset)
        return numbers

    def _read(self, rows: torch.Tensor, span: slice) -> torch.Tensor:
        """`[num_slots, num_kv_heads, *]` -> `[num_sequences, num_kv_heads, num_positions, *]`."""
        if self._place is not None:
            first = self._place.start
            return rows[first + span.start : first + span.stop].transpose(0, 1).unsqueeze(0)
        last_block = -(-span.stop // self._block_size)
        tables = self._tables[:, span.start // self._block_size : last_block]
        blocks = rows.view(-1, self._block_size, *rows.shape[1:])
        read = blocks.index_select(0, tables.flatten())
        # [num_sequences, num_blocks * block_size, num_kv_heads, ...]
        read = read.view(len(tables), -1, *rows.shape[1:])
        return read[:, : span.stop - span.start].transpose(1, 2)


def attention_in_tiles(
    query: torch.Tensor,
    layer: LayerKv,
    tiles: KvTiles,
    num_positions: int,
    mask: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Attends queries to the KV of their sequences; computes in float32.

    Args:
        query: `[num_sequences, num_kv_heads, num_groups, num_queries, head_dim]`.
        layer: Keys and values of the pool.
        tiles: Reads those of the sequences.
        num_positions: Positions of the longest sequence.
        mask: What `additive_mask` returns, for the last of the positions; spreads to
            `[num_sequences, num_kv_heads, num_groups, num_queries, num_masked_positions]`. None:
            all is seen.
        scoring: How the layer scores; its window is in the mask.

    Returns:
        As `query`.
    """
    num_columns = num_positions + (scoring.sinks is not None)
    # [num_sequences, num_kv_heads, num_rows, head_dim]
    rows = query.float().flatten(2, 3) * scoring.scaling
    scores = rows.new_empty(*rows.shape[:-1], num_columns)
    for span in tiles.spans(layer.keys, num_positions):
        scores[..., span] = rows @ tiles.numbers(layer.keys, span).transpose(-1, -2)
    if scoring.softcap is not None:
        scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    if mask is not None:
        by_query = scores.view(*query.shape[:-1], num_columns)
        by_query[..., num_positions - mask.shape[-1] : num_positions].add_(mask)
    if scoring.sinks is not None:
        _, num_kv_heads, num_groups, _, _ = query.shape
        sinks = scoring.sinks.float().view(num_kv_heads, num_groups, 1)
        scores.view(*query.shape[:-1], num_columns)[..., -1] = sinks
    weights = torch.softmax(scores, dim=-1)
    output = torch.zeros_like(rows)
    for span in tiles.spans(layer.values, num_positions):
        output += weights[..., span] @ tiles.numbers(layer.values, span)
    return output.view(query.shape).to(query.dtype)
