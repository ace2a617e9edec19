"""Slot tables against a twin that stores every token of every slot in a list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.slot_tables import SlotTables
from stagecoach.contract.errors import KvFullError, StaleStateError
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot

NUM_BLOCKS, BLOCK_SIZE, NUM_SLOTS = 12, 4, 5

slots = st.integers(0, NUM_SLOTS - 1)
counts = st.integers(0, 20)
ops = st.one_of(
    st.builds(FreeSlot, slots),
    st.builds(TruncateSlot, slots, counts),
    st.builds(ForkSlot, slots, slots, st.integers(1, 20)),
)
slices = st.lists(
    st.builds(SequenceSlice, slots, counts, st.integers(1, 12)),
    max_size=3,
    unique_by=lambda piece: piece.kv_slot,
)
steps = st.lists(st.tuples(st.lists(ops, max_size=3), slices), max_size=30)


class Twin:
    """A stage whose KV is what the tokens are: contents by slot, and pool memory by block."""

    def __init__(self) -> None:
        self.contents: dict[int, list[int]] = {}
        self.memory = [[-1] * BLOCK_SIZE for _ in range(NUM_BLOCKS)]
        self.clock = 0

    def expected(
        self, op_list: list[SlotOp], pieces: list[SequenceSlice]
    ) -> dict[int, list[int]] | None:
        """Contents after the step, new tokens numbered by time; None when it is stale."""
        contents = {slot: tokens[:] for slot, tokens in self.contents.items()}
        for op in op_list:
            match op:
                case FreeSlot(slot):
                    contents[slot] = []
                case TruncateSlot(slot, num_tokens):
                    if num_tokens > len(contents.get(slot, [])):
                        return None
                    contents[slot] = contents.get(slot, [])[:num_tokens]
                case ForkSlot(source, target, num_tokens):
                    if num_tokens > len(contents.get(source, [])) or contents.get(target):
                        return None
                    contents[target] = contents[source][:num_tokens]
        for piece in pieces:
            held = contents.get(piece.kv_slot, [])
            if piece.start_position > len(held):
                return None
            new = [self.clock * 100 + i for i in range(piece.num_tokens)]
            contents[piece.kv_slot] = held[: piece.start_position] + new
            self.clock += 1
        return contents


@settings(max_examples=300, deadline=None)
@given(steps)
def test_every_slot_reads_back_what_was_written_to_it(
    script: list[tuple[list[SlotOp], list[SequenceSlice]]],
) -> None:
    tables = SlotTables(NUM_BLOCKS, BLOCK_SIZE)
    twin = Twin()
    for op_list, pieces in script:
        free_before = tables.num_free_blocks
        expected = twin.expected(op_list, pieces)
        try:
            plan = tables.apply(op_list, pieces)
        except StaleStateError:
            assert expected is None
            assert tables.num_free_blocks == free_before
        except KvFullError:
            assert tables.num_free_blocks == free_before
        else:
            assert expected is not None
            for copy in plan.copies:
                twin.memory[copy.target] = twin.memory[copy.source][:]
            for piece, table in zip(pieces, plan.block_tables, strict=True):
                for position in range(piece.start_position, piece.end_position):
                    twin.memory[table[position // BLOCK_SIZE]][position % BLOCK_SIZE] = expected[
                        piece.kv_slot
                    ][position]
                read = [
                    twin.memory[table[p // BLOCK_SIZE]][p % BLOCK_SIZE]
                    for p in range(piece.end_position)
                ]
                assert read == expected[piece.kv_slot]
            twin.contents = expected
        tables.check_integrity()
        for slot in range(NUM_SLOTS):
            assert tables.num_tokens(slot) == len(twin.contents.get(slot, []))


def test_a_shared_block_is_copied_before_it_is_written() -> None:
    tables = SlotTables(NUM_BLOCKS, BLOCK_SIZE)
    [table] = tables.apply([], [SequenceSlice(0, 0, 6)]).block_tables
    plan = tables.apply([ForkSlot(0, 1, 6)], [SequenceSlice(1, 6, 1)])
    [forked] = plan.block_tables
    assert forked[0] == table[0]
    assert forked[1] != table[1]
    assert plan.copies == ((table[1], forked[1]),)


def test_free_all_returns_every_block() -> None:
    tables = SlotTables(NUM_BLOCKS, BLOCK_SIZE)
    tables.apply([], [SequenceSlice(0, 0, 6), SequenceSlice(3, 0, 1)])
    tables.free_all()
    assert tables.num_free_blocks == NUM_BLOCKS
    tables.check_integrity()


def test_a_full_pool_names_its_size() -> None:
    tables = SlotTables(2, BLOCK_SIZE)
    with pytest.raises(KvFullError, match="all 2 KV blocks"):
        tables.apply([], [SequenceSlice(0, 0, 9)])
    tables.check_integrity()
