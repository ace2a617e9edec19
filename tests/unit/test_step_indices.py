"""The index tensors of a step, against what they are made of."""

import pytest
import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.slot_tables import BlockPlan, SlotTables
from stage_server.kv_cache.step_indices import StepIndices, _sent_together
from stagecoach.contract.slot_ops import ForkSlot

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def make_indices(
    slices: list[SequenceSlice], plan: BlockPlan, *, max_gathered_tokens: int | None = 10**6
) -> StepIndices:
    return StepIndices.of(
        slices,
        plan,
        torch.empty(0),
        block_size=BLOCK_SIZE,
        device=CPU,
        logits_rows=[len(slices) - 1],
        max_gathered_tokens=max_gathered_tokens,
    )


@pytest.fixture
def tables() -> SlotTables:
    tables = SlotTables(32, BLOCK_SIZE)
    tables.apply([], [SequenceSlice(0, 0, 5), SequenceSlice(1, 0, 1), SequenceSlice(2, 0, 40)])
    return tables


def test_rows_are_told_where_they_are_and_where_they_go(tables: SlotTables) -> None:
    slices = [SequenceSlice(0, 5, 1), SequenceSlice(1, 1, 4), SequenceSlice(2, 40, 1)]
    plan = tables.apply([], slices)
    indices = make_indices(slices, plan, max_gathered_tokens=None)
    assert indices.positions.tolist() == [5, 1, 2, 3, 4, 40]
    assert indices.num_positions == 41
    first, second, third = plan.block_tables
    assert indices.slots.tolist() == [
        first[1] * 4 + 1,
        *(second[0] * 4 + i for i in (1, 2, 3)),
        second[1] * 4,
        third[10] * 4,
    ]
    assert indices.logits_rows.tolist() == [2]
    assert indices.new_blocks.tolist() == list(plan.new_blocks)
    assert [table.tolist() for table in indices.chunk_tables] == [list(second)]
    [decodes] = indices.decodes
    assert decodes.rows.tolist() == [0, 5]
    assert decodes.lengths.tolist() == [6, 41]
    assert decodes.max_length == 41
    assert decodes.starts.tolist() == [0, 2]
    assert decodes.tables.tolist() == [*first, *third]


def test_only_sequences_of_like_length_are_gathered_together(tables: SlotTables) -> None:
    slices = [SequenceSlice(0, 5, 1), SequenceSlice(1, 1, 1), SequenceSlice(2, 40, 1)]
    plan = tables.apply([], slices)
    apart = make_indices(slices, plan)
    assert len(apart.decodes) > 1
    assert sorted(i for group in apart.groups for i in group) == [0, 1, 2]
    together = make_indices(slices, plan, max_gathered_tokens=None)
    assert together.groups == ((0, 1, 2),)


def test_a_shorter_table_is_padded_where_attention_gathers(tables: SlotTables) -> None:
    tables.apply([], [SequenceSlice(3, 0, 25)])
    slices = [SequenceSlice(3, 25, 1), SequenceSlice(2, 40, 1)]
    plan = tables.apply([], slices)
    shorter, longer = plan.block_tables
    [decodes] = make_indices(slices, plan).decodes
    assert decodes.starts.tolist() == [0, 11]
    assert decodes.tables.tolist() == [*shorter, *[shorter[0]] * 4, *longer]


def test_one_long_sequence_beside_short_ones_costs_no_more_than_its_own_table() -> None:
    """Tables were padded to the longest, in every step."""
    tables = SlotTables(2048, BLOCK_SIZE)
    lengths = [4096] + [20] * 63
    tables.apply([], [SequenceSlice(slot, 0, length) for slot, length in enumerate(lengths)])
    slices = [SequenceSlice(slot, length - 1, 1) for slot, length in enumerate(lengths)]
    plan = tables.apply([], slices)
    indices = make_indices(slices, plan, max_gathered_tokens=None)
    num_blocks = sum(map(len, plan.block_tables))
    assert len(indices.packed) <= num_blocks + 6 * len(lengths)


def test_blocks_that_are_copied_are_among_the_indices(tables: SlotTables) -> None:
    slices = [SequenceSlice(3, 5, 1)]
    plan = tables.apply([ForkSlot(0, 3, 5)], slices)
    indices = make_indices(slices, plan)
    assert list(zip(indices.copy_sources.tolist(), indices.copy_targets.tolist(), strict=True)) == [
        tuple(copy) for copy in plan.copies
    ]
    assert len(plan.copies) == 1


def test_all_of_them_are_copied_to_the_device_at_once(tables: SlotTables) -> None:
    slices = [SequenceSlice(0, 5, 1), SequenceSlice(1, 1, 4), SequenceSlice(2, 40, 1)]
    indices = make_indices(slices, tables.apply([], slices))
    tensors = [indices.positions, indices.slots, indices.new_blocks, *indices.chunk_tables]
    for decodes in indices.decodes:
        tensors += [decodes.rows, decodes.lengths, decodes.starts, decodes.tables]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_indices_and_inputs_go_to_a_card_in_one_copy(dtype: torch.dtype) -> None:
    lists = torch.tensor([3, 1, 2**40])
    inputs = torch.arange(6).view(2, 3).to(dtype)
    found = _sent_together(lists, inputs, CPU)
    assert torch.equal(found[0], lists)
    assert torch.equal(found[1], inputs)
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()


@pytest.mark.parametrize("num_integers", range(1, 5))
def test_inputs_are_aligned_behind_any_number_of_integers(num_integers: int) -> None:
    """Or the kernel that reads them first is compiled for each alignment, when it is first met."""
    lists, inputs = torch.arange(num_integers), torch.ones(2, 3, dtype=torch.bfloat16)
    found = _sent_together(lists, inputs, CPU)
    assert torch.equal(found[0], lists)
    assert torch.equal(found[1], inputs)
    assert found[1].data_ptr() % 16 == 0
