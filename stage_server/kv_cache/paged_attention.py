"""Attention of one micro-batch over paged KV: writes the new keys and values, reads the old ones.

All sequences lie packed in one row of tokens. Slices of one token, which is what decoding sends,
are computed together: by a kernel that reads the KV in place, or, without kernels, gathered in
groups of like length. Longer slices (prefill chunks) are computed one by one, by fused kernels of
torch or, where these do not serve, by a kernel of ours.
"""

from collections.abc import Sequence

import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kernels.kernels import Kernels, rotate_and_store, store_coded
from stage_server.kv_cache.gathered_decodes import GatheredDecodes
from stage_server.kv_cache.kernel_decodes import KernelDecodes
from stage_server.kv_cache.kv_pool import KvPool, LayerKv, NewKv
from stage_server.kv_cache.prefill_chunk import PrefillChunk
from stage_server.kv_cache.scoring import Scoring
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.kv_cache.step_indices import StepIndices, rows_of_slices


class PagedAttention:
    """Implements `Attention` and `FusedAttention` of `stage_server.model.attention`.

    Args:
        pool: The stage's KV tensors; `pool.prepare(indices)` has run.
        slices: Slices of the micro-batch, at least one, in the order of its rows.
        plan: Their blocks.
        indices: The same on the device; where there are kernels, all that decode are one group.
        kernels: The device's; None: it has none, and attention gathers.
    """

    def __init__(
        self,
        pool: KvPool,
        slices: Sequence[SequenceSlice],
        plan: BlockPlan,
        indices: StepIndices,
        kernels: Kernels | None = None,
    ) -> None:
        self._pool = pool
        self._kernels = kernels
        self._indices = indices
        self._decodes: list[KernelDecodes | GatheredDecodes] = []
        self._gathered: GatheredDecodes | None = None
        tables = plan.block_tables
        for group, decodes in zip(indices.groups, indices.decodes, strict=True):
            if kernels is not None:
                self._decodes.append(KernelDecodes(kernels, decodes, pool.block_size))
                continue
            lengths = [slices[i].end_position for i in group]
            group_tables = [tables[i] for i in group]
            gathered = GatheredDecodes(decodes, lengths, group_tables, pool.block_size)
            self._decodes.append(gathered)
            if len(group) == len(slices):  # all rows, in order
                self._gathered = gathered
        first_rows = rows_of_slices(slices)
        chunks = [i for i, piece in enumerate(slices) if not piece.is_single_token]
        self._chunks = [
            PrefillChunk(first_rows[i], slices[i], tables[i], table, pool.block_size, kernels)
            for i, table in zip(chunks, indices.chunk_tables, strict=True)
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
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Stores key and value, and attends every query to its own sequence up to itself.

        Where the pool has another format than the query, keys and values are rounded to it first,
        so that a chunk attends to the same numbers as the chunks after it.

        Args:
            layer_index: Local layer, from 0.
            query: `[num_tokens, num_heads, head_dim]`.
            key: `[num_tokens, num_kv_heads, head_dim]`.
            value: As `key`.
            scaling: Factor on the scores.
            sliding_window: A position sees this many positions, itself included; None: all.
            softcap: Scores become `softcap * tanh(score / softcap)`; None: unchanged.
            sinks: `[num_heads]`: a score of each head beside those of the positions, which takes
                its share of the weights and has no value; None: there is none.

        Returns:
            `[num_tokens, num_heads, head_dim]`.
        """
        layer = self._pool.layer(layer_index)
        new = self._store(layer, NewKv(key, value))
        scoring = Scoring(scaling, sliding_window, softcap, sinks)
        if self._gathered is not None:
            return self._gathered.attend(query, layer, scoring)
        return self._attend_stored(query.contiguous(), new, layer, scoring)

    def _store(self, layer: LayerKv, new: NewKv) -> NewKv | None:
        """Writes keys and values; returns them as they were rounded, or None: they are codes."""
        slots = self._indices.slots
        if self._kernels is None or not layer.is_coded:
            return layer.store(slots, new)
        for heads, cache in layer.places(new):
            assert cache.scales is not None, "both are coded"
            store_coded(heads, slots, cache.rows, cache.scales)
        return None

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
        """Norms and rotates queries and keys, and attends; only where there are kernels.

        See `stage_server.model.attention.FusedAttention`.
        """
        layer = self._pool.layer(layer_index)
        query = rotate_and_store(
            heads,
            cos,
            swapped_sin,
            head_norm=head_norm,
            eps=eps,
            slots=self._indices.slots,
            keys=layer.keys.rows,
            values=layer.values.rows,
            key_scales=layer.keys.scales,
            value_scales=layer.values.scales,
        )
        return self._attend_stored(query, None, layer, Scoring(scaling, sliding_window, None))

    def _attend_stored(
        self, query: torch.Tensor, new: NewKv | None, layer: LayerKv, scoring: Scoring
    ) -> torch.Tensor:
        output = torch.empty_like(query)  # [num_tokens, num_heads, head_dim]
        for decodes in self._decodes:
            decodes.attend_into(output, query, layer, scoring)
        for chunk in self._chunks:
            chunk.attend_into(output, query, new, layer, scoring)
        return output
