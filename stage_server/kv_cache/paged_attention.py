"""Attention of one micro-batch over paged KV: writes the new keys and values, reads the old ones.

All sequences lie packed in one row of tokens. Slices of one token, which is what decoding sends,
are computed together in groups of like length; longer slices (prefill chunks) one by one.

Grouped-query attention (arXiv:2305.13245) needs no copies of the keys: with one token a sequence,
the query heads that share a key head take the place of the query length; with more, the key heads
are expanded by a stride of zero.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.kv_pool import KvPool, KvViews
from stage_server.kv_cache.slot_tables import BlockPlan
from stagecoach.roofline.activation_memory import MAX_GATHERED_BYTES

MAX_PADDING = 2
"""How many times the KV that a group of sequences holds may be gathered for it."""


class PagedAttention:
    """Implements `stage_server.model.attention.Attention` for one micro-batch.

    Args:
        pool: The stage's KV tensors; `pool.prepare(plan)` has run.
        slices: Slices of the micro-batch, at least one, in the order of its rows.
        plan: Their blocks.
    """

    def __init__(self, pool: KvPool, slices: Sequence[SequenceSlice], plan: BlockPlan) -> None:
        self._pool = pool
        self._write_index = _write_index(slices, plan, pool)
        first_rows = _first_rows(slices)
        self._decodes = [
            _DecodeGroup(
                pool,
                rows=[first_rows[i] for i in group],
                lengths=[slices[i].end_position for i in group],
                block_tables=[plan.block_tables[i] for i in group],
            )
            for group in groups_of_like_length(
                slices,
                block_size=pool.block_size,
                max_tokens=MAX_GATHERED_BYTES // pool.bytes_per_token_and_layer,
            )
        ]
        self._chunks = [
            _Chunk(pool, first_rows[i], piece, plan.block_tables[i])
            for i, piece in enumerate(slices)
            if not piece.is_decode
        ]

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

        Where the pool has another dtype than the query, keys and values are rounded to it first, so
        that a chunk attends to the same numbers as the chunks after it.

        Args:
            layer_index: Local layer, from 0.
            query: `[num_tokens, num_heads, head_dim]`.
            key: `[num_tokens, num_kv_heads, head_dim]`.
            value: As `key`.
            scaling: Factor on the scores.
            sliding_window: A position sees this many positions, itself included; None: all.
            softcap: Scores become `softcap * tanh(score / softcap)`; None: unchanged.

        Returns:
            `[num_tokens, num_heads, head_dim]`.
        """
        keys, values = self._pool.layer(layer_index)
        key, value = key.to(keys.rows.dtype), value.to(values.rows.dtype)
        keys.rows.index_copy_(0, self._write_index, key)
        values.rows.index_copy_(0, self._write_index, value)
        if len(self._decodes) == 1 and not self._chunks:  # all rows, in order
            return self._decodes[0].attend(query, keys, values, scaling, sliding_window, softcap)
        output = torch.empty_like(query)  # [num_tokens, num_heads, head_dim]
        for group in self._decodes:
            output[group.rows] = group.attend(
                query[group.rows], keys, values, scaling, sliding_window, softcap
            )
        for chunk in self._chunks:
            output[chunk.rows] = chunk.attend(
                query[chunk.rows],
                key[chunk.rows],
                value[chunk.rows],
                keys,
                values,
                scaling,
                sliding_window,
                softcap,
            )
        return output


class _DecodeGroup:
    """Sequences that run one token each, padded to the blocks of the longest."""

    def __init__(
        self,
        pool: KvPool,
        rows: list[int],
        lengths: list[int],
        block_tables: list[tuple[int, ...]],
    ) -> None:
        self._rows = rows
        self._block_tables = block_tables
        self._lengths = lengths
        self._max_length = max(lengths)
        self._place = None
        if len(lengths) == 1:
            self._place = place_side_by_side(block_tables[0], pool.block_size, lengths[0])
        self._device = pool.device
        self._masks: dict[int | None, torch.Tensor | None] = {}

    @cached_property
    def rows(self) -> torch.Tensor:
        """`[num_seqs]`."""
        return torch.tensor(self._rows, device=self._device)

    def attend(
        self,
        query: torch.Tensor,
        keys: KvViews,
        values: KvViews,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        num_seqs, num_heads, head_dim = query.shape
        num_kv_heads = keys.rows.shape[1]
        output = _attention(  # [num_seqs, num_kv_heads, num_groups, head_dim]
            query.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim),
            self._gather(keys),  # [num_seqs, num_kv_heads, max_length, head_dim]
            self._gather(values),
            self._mask(sliding_window),  # [num_seqs, 1, 1, max_length]
            scaling,
            softcap,
        )
        return output.reshape(num_seqs, num_heads, head_dim)

    def _gather(self, cache: KvViews) -> torch.Tensor:
        """`[num_seqs, num_kv_heads, max_length, head_dim]`."""
        if self._place is not None:
            return cache.heads.narrow(2, self._place.start, self._max_length)  # a view
        num_seqs = len(self._padded_tables)
        # [num_seqs * num_blocks, block_size, num_kv_heads, head_dim]
        gathered = cache.blocks.index_select(0, self._padded_tables.view(-1))
        # [num_seqs, num_blocks * block_size, num_kv_heads, head_dim]
        gathered = gathered.view(num_seqs, -1, *cache.rows.shape[1:])
        return gathered[:, : self._max_length].transpose(1, 2)

    @cached_property
    def _padded_tables(self) -> torch.Tensor:
        """`[num_seqs, num_blocks]`."""
        num_blocks = max(len(table) for table in self._block_tables)
        # A sequence pads with its own first block, so that it never reads another's.
        padded = [table + (table[0],) * (num_blocks - len(table)) for table in self._block_tables]
        return torch.tensor(padded, device=self._device)

    def _mask(self, sliding_window: int | None) -> torch.Tensor | None:
        """`[num_seqs, 1, 1, max_length]`, True where attended; None when that is everywhere."""
        if sliding_window not in self._masks:
            self._masks[sliding_window] = self._make_mask(sliding_window)
        return self._masks[sliding_window]

    def _make_mask(self, sliding_window: int | None) -> torch.Tensor | None:
        in_window = sliding_window is None or sliding_window >= self._max_length
        if in_window and min(self._lengths) == self._max_length:
            return None
        positions = torch.arange(self._max_length, device=self._device)  # [max_length]
        lengths = torch.tensor(self._lengths, device=self._device)[:, None]  # [num_seqs, 1]
        mask = positions < lengths  # [num_seqs, max_length]
        if sliding_window is not None:
            mask &= positions >= lengths - sliding_window
        return mask[:, None, None]


class _Chunk:
    """A sequence that runs several tokens."""

    def __init__(
        self, pool: KvPool, first_row: int, piece: SequenceSlice, block_table: tuple[int, ...]
    ) -> None:
        self.rows = slice(first_row, first_row + piece.num_tokens)
        self._start, self._end = piece.start_position, piece.end_position
        self._place = place_side_by_side(block_table, pool.block_size, self._end)
        self._block_table = torch.tensor(block_table, device=pool.device)
        self._device = pool.device
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: KvViews,
        values: KvViews,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        if self._start:
            key, value = self._gather(keys), self._gather(values)
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        in_window = sliding_window is None or sliding_window >= self._end
        plainly_causal = self._start == 0 and in_window and softcap is None
        output = _attention(  # [num_kv_heads, num_groups, num_tokens, head_dim]
            query.transpose(0, 1).view(num_kv_heads, -1, num_tokens, head_dim),
            _expand_heads(key, num_heads),  # [num_kv_heads, num_groups, end_position, head_dim]
            _expand_heads(value, num_heads),
            None if plainly_causal else self._mask(None if in_window else sliding_window),
            scaling,
            softcap,
            is_causal=plainly_causal,
        )
        return output.reshape(num_heads, num_tokens, head_dim).transpose(0, 1)

    def _gather(self, cache: KvViews) -> torch.Tensor:
        """`[end_position, num_kv_heads, head_dim]`."""
        if self._place is not None:
            return cache.rows[self._place]
        return cache.blocks.index_select(0, self._block_table).flatten(0, 1)[: self._end]

    def _mask(self, sliding_window: int | None) -> torch.Tensor:
        """`[num_tokens, end_position]`, True where attended."""
        if sliding_window not in self._masks:
            # [num_tokens, 1] and [end_position].
            queries = torch.arange(self._start, self._end, device=self._device)[:, None]
            positions = torch.arange(self._end, device=self._device)
            mask = positions <= queries  # [num_tokens, end_position]
            if sliding_window is not None:
                mask &= positions > queries - sliding_window
            self._masks[sliding_window] = mask
        return self._masks[sliding_window]


def place_side_by_side(
    block_table: tuple[int, ...], block_size: int, num_tokens: int
) -> slice | None:
    """Returns where in the pool's tokens a sequence lies in one piece; None when it does not.

    Args:
        block_table: Its blocks, at least one.
        block_size: Tokens a block.
        num_tokens: Its length.
    """
    first = block_table[0]
    if block_table != tuple(range(first, first + len(block_table))):
        return None
    return slice(first * block_size, first * block_size + num_tokens)


def groups_of_like_length(
    slices: Sequence[SequenceSlice], *, block_size: int, max_tokens: int
) -> list[list[int]]:
    """Cuts the slices that decode into groups that padding at most doubles.

    So the time of a gather is bounded by the KV in use, whatever the mix of lengths, and its memory
    even where many sequences share their blocks. The members of a group are in the order of their
    rows.

    Args:
        slices: All of the micro-batch.
        block_size: Tokens a block; whole ones are gathered.
        max_tokens: Tokens that a group of several may gather, padding included.
    """
    decodes = [i for i, piece in enumerate(slices) if piece.is_decode]
    groups: list[list[int]] = []
    longest = held = most = 0
    for i in sorted(decodes, key=lambda i: -slices[i].end_position):
        length = slices[i].end_position
        size = len(groups[-1]) + 1 if groups else 0
        if not groups or size > most or size * longest > MAX_PADDING * (held + length):
            groups.append([])
            longest, held = length, 0
            most = max_tokens // (-(-longest // block_size) * block_size)
        groups[-1].append(i)
        held += length
    return [sorted(group) for group in groups]


def _expand_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Repeats each head for the query heads that share it, without a copy.

    `[length, num_kv_heads, head_dim]` -> `[num_kv_heads, num_groups, length, head_dim]`.
    """
    num_groups = num_heads // tensor.shape[1]
    return tensor.transpose(0, 1).unsqueeze(1).expand(-1, num_groups, -1, -1)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    key, value = key.to(query.dtype), value.to(query.dtype)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, is_causal=is_causal
        )
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling  # [..., queries, positions]
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value)


def _first_rows(slices: Sequence[SequenceSlice]) -> list[int]:
    rows, row = [], 0
    for piece in slices:
        rows.append(row)
        row += piece.num_tokens
    return rows


def _write_index(slices: Sequence[SequenceSlice], plan: BlockPlan, pool: KvPool) -> torch.Tensor:
    """Place of every row in the pool's tokens, `[num_tokens]`."""
    size = pool.block_size
    return torch.tensor(
        [
            table[position // size] * size + position % size
            for piece, table in zip(slices, plan.block_tables, strict=True)
            for position in range(piece.start_position, piece.end_position)
        ],
        device=pool.device,
    )
