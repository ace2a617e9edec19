"""What a step needs on its device: packed in one pinned buffer, and copied there at once."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np
import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.decode_groups import groups_of_like_length, indices_of_single_tokens
from stage_server.kv_cache.slot_tables import BlockPlan

_ALIGNMENT_BYTES = 16
"""Inputs begin at a multiple of it. Triton compiles a kernel once more for a pointer that does not,
in the middle of serving where warm-up has met no such pointer."""


class DecodeIndices(NamedTuple):
    """Sequences that run one token each and are attended together; int64 on the device."""

    rows: torch.Tensor
    """`[num_sequences]`: the row of each in the micro-batch, ascending."""
    lengths: torch.Tensor
    """`[num_sequences]`: positions of each, the new one included."""
    starts: torch.Tensor
    """`[num_sequences]`: where each block table begins in `tables`."""
    tables: torch.Tensor
    """`[num_blocks]`: the block tables, one behind the other. Where attention gathers all are as
    long as the longest: a shorter one is padded with its own first block, so that a sequence never
    reads another's."""
    max_length: int
    """No length is above this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepIndices:
    """What a step looks up with; every tensor is int64, one-dimensional and on the device."""

    positions: torch.Tensor
    """`[num_tokens]`: of every row in its own sequence."""
    num_positions: int
    """All positions are below this."""
    slots: torch.Tensor
    """`[num_tokens]`: place of every row in the pool's tokens."""
    logits_rows: torch.Tensor
    """`[num_rows]`: rows whose logits are wanted."""
    logits_numbers: torch.Tensor
    """What the reduction of logits has to know, as it was given."""
    new_blocks: torch.Tensor
    """`[num_new_blocks]`: as in `BlockPlan`."""
    copy_sources: torch.Tensor
    """`[num_copies]`: shared blocks that are about to be written."""
    copy_targets: torch.Tensor
    """`[num_copies]`: the blocks that their content moves to."""
    groups: tuple[tuple[int, ...], ...]
    """Slices of one token, by the groups in which they are attended."""
    decodes: tuple[DecodeIndices, ...]
    """Indices of each group of sequences that decode."""
    chunk_tables: tuple[torch.Tensor, ...]
    """Block tables of all longer slices, in order, `[num_blocks]` each."""
    inputs: torch.Tensor
    """Token ids or hidden states of the micro-batch, of the shape and dtype that they came in."""
    packed: torch.Tensor
    """All lists, one behind the other: positions and slots, then rows, lengths, starts and tables
    of each group."""

    @classmethod
    def of(
        cls,
        slices: Sequence[SequenceSlice],
        plan: BlockPlan,
        inputs: torch.Tensor,
        *,
        block_size: int,
        device: torch.device,
        logits_rows: Sequence[int] = (),
        logits_numbers: Sequence[int] = (),
        max_gathered_tokens: int | None,
    ) -> Self:
        """Makes the indices of a micro-batch, with one copy to the device.

        Args:
            slices: Slices of the micro-batch, at least one, in the order of its rows.
            plan: Their blocks.
            inputs: Token ids or hidden states, on the host.
            block_size: Tokens a block.
            device: Where the indices and the inputs go.
            logits_rows: Rows whose logits are wanted.
            logits_numbers: What the reduction of logits has to know.
            max_gathered_tokens: Tokens that a group of several sequences may gather, padding
                included. None: nothing is gathered, and sequences of any lengths are attended
                together.
        """
        if max_gathered_tokens is None:
            decodes = indices_of_single_tokens(slices)
            groups = [decodes] if decodes else []
        else:
            groups = groups_of_like_length(
                slices, block_size=block_size, max_tokens=max_gathered_tokens
            )
        first_rows = rows_of_slices(slices)
        tables = plan.block_tables
        pack = _Pack()
        pack.add([position for piece in slices for position in _positions(piece)])
        pack.add(
            [
                table[position // block_size] * block_size + position % block_size
                for piece, table in zip(slices, tables, strict=True)
                for position in _positions(piece)
            ]
        )
        for group in groups:
            group_tables: list[Sequence[int]] = [tables[i] for i in group]
            if max_gathered_tokens is not None:
                group_tables = [*_padded(group_tables)]
            pack.add([first_rows[i] for i in group])
            pack.add([slices[i].end_position for i in group])
            pack.add([0, *accumulate(map(len, group_tables[:-1]))])
            pack.add_joined(group_tables)
        pack.add(logits_rows)
        pack.add(logits_numbers)
        pack.add(plan.new_blocks)
        pack.add([copy.source for copy in plan.copies])
        pack.add([copy.target for copy in plan.copies])
        chunks = [
            table for piece, table in zip(slices, tables, strict=True) if not piece.is_single_token
        ]
        for table in chunks:
            pack.add(table)
        packed, sent_inputs = pack.sent_to(device, inputs)
        sent = iter(torch.split_with_sizes(packed, pack.sizes))
        return cls(
            num_positions=max(piece.end_position for piece in slices),
            positions=next(sent),
            slots=next(sent),
            groups=tuple(map(tuple, groups)),
            decodes=tuple(
                DecodeIndices(
                    next(sent),
                    next(sent),
                    next(sent),
                    next(sent),
                    max(slices[i].end_position for i in group),
                )
                for group in groups
            ),
            logits_rows=next(sent),
            logits_numbers=next(sent),
            new_blocks=next(sent),
            copy_sources=next(sent),
            copy_targets=next(sent),
            chunk_tables=tuple(sent),
            inputs=sent_inputs,
            packed=packed,
        )


class _Pack:
    """Lists of integers, one behind the other."""

    def __init__(self) -> None:
        self._values = array("q")
        self.sizes: list[int] = []

    def add(self, values: Sequence[int]) -> None:
        """Adds a list."""
        self.add_joined([values])

    def add_joined(self, parts: Iterable[Sequence[int]]) -> None:
        """Adds one list that comes in parts."""
        before = len(self._values)
        for part in parts:
            self._values += array("q", part)
        self.sizes.append(len(self._values) - before)

    def sent_to(
        self, device: torch.device, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists, in one tensor, and the inputs; both on the device."""
        packed = torch.tensor(np.frombuffer(self._values, dtype=np.int64))
        if device.type != "cpu":
            packed, inputs = _sent_together(packed, inputs, device)
        return packed, inputs


def _sent_together(
    first: torch.Tensor, second: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies two tensors to the device as one, without waiting; the first is of int64."""
    start = -(-first.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    is_pinned = device.type == "cuda"
    host = torch.empty(start + second.nbytes, dtype=torch.uint8, pin_memory=is_pinned)
    views = host[: first.nbytes].view(torch.int64), host[start:].view(second.dtype)
    views[0].copy_(first)
    views[1].copy_(second.flatten())
    sent = host.to(device, non_blocking=True)
    return (
        sent[: first.nbytes].view(torch.int64),
        sent[start:].view(second.dtype).view(second.shape),
    )


def rows_of_slices(slices: Sequence[SequenceSlice]) -> list[int]:
    """Returns the first row of each slice."""
    rows, row = [], 0
    for piece in slices:
        rows.append(row)
        row += piece.num_tokens
    return rows


def _positions(piece: SequenceSlice) -> range:
    return range(piece.start_position, piece.end_position)


def _padded(tables: Sequence[Sequence[int]]) -> list[list[int]]:
    num_blocks = max(len(table) for table in tables)
    return [[*table, *[table[0]] * (num_blocks - len(table))] for table in tables]
