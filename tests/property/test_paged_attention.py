"""Paged attention of random ragged micro-batches against a twin that takes one query at a time."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache import prefill_chunk
from stage_server.kv_cache.decode_groups import MAX_PADDING, groups_of_like_length
from stage_server.kv_cache.kv_pool import KvPool
from stage_server.kv_cache.paged_attention import PagedAttention
from stage_server.kv_cache.side_by_side import place_side_by_side
from stage_server.kv_cache.slot_tables import SlotTables
from stage_server.kv_cache.step_indices import StepIndices
from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.contract.precision import KvFormat
from stagecoach.contract.slot_ops import FreeSlot

BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS, HEAD_DIM, NUM_KV_HEADS = 4, 40, 4, 8, 2

steps = st.lists(
    st.lists(
        st.tuples(st.integers(0, NUM_SLOTS - 1), st.sampled_from([1, 1, 1, 2, 5, 9])),
        min_size=1,
        max_size=NUM_SLOTS,
        unique_by=lambda pair: pair[0],
    ),
    min_size=1,
    max_size=5,
)


def attend_one(
    query: torch.Tensor,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of the last token of one sequence, head by head, in plain loops."""
    num_groups = query.shape[0] // keys[0].shape[0]
    first = 0 if sliding_window is None else max(0, len(keys) - sliding_window)
    output = torch.zeros_like(query)
    for head in range(query.shape[0]):
        scores = [float(query[head] @ key[head // num_groups]) * scaling for key in keys[first:]]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        weights = torch.softmax(torch.tensor(scores), dim=0)
        for weight, value in zip(weights, values[first:], strict=True):
            output[head] += weight * value[head // num_groups]
    return output


def rounded(heads: torch.Tensor, kv_format: KvFormat) -> torch.Tensor:
    """Heads of one token, head by head, as a pool keeps them."""
    if kv_format is not KvFormat.INT8:
        return heads.half().float() if kv_format is KvFormat.FLOAT16 else heads
    numbers = []
    for head in heads:
        offset = ((head.min() + head.max()) / 2).half().float()
        scale = ((head - offset).abs().max() / 127).half().float()
        numbers.append(torch.floor((head - offset) / scale + 0.5) * scale + offset)
    return torch.stack(numbers)


@settings(max_examples=60, deadline=None)
@given(
    steps,
    st.sampled_from([1, 3]),
    st.sampled_from([None, 1, 3, 6, 100]),
    st.sampled_from([None, 5.0]),
    st.sampled_from([KvFormat.FLOAT32, KvFormat.FLOAT16, KvFormat.INT8]),
    st.sampled_from(["cpu", "cuda"]),
    st.integers(0, 2**31),
)
def test_every_row_equals_the_attention_of_its_own_sequence(
    script: list[list[tuple[int, int]]],
    num_groups: int,
    sliding_window: int | None,
    softcap: float | None,
    kv_format: KvFormat,
    tiled_device: str,
    seed: int,
) -> None:
    """Where no device reads tiles, keys and values are converted before, as on a card."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    pool = KvPool(
        num_layers=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        kv_format=kv_format,
        device=torch.device("cpu"),
    )
    # What a former owner may have left; no mask stops a NaN.
    for views in pool.layer(1):
        if views.scales is None:
            views.rows.fill_(math.nan)
        else:
            views.rows.fill_(127)
            views.scales.fill_(math.nan)
    tables = SlotTables(NUM_BLOCKS, BLOCK_SIZE)
    history: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {
        slot: ([], []) for slot in range(NUM_SLOTS)
    }
    for step in script:
        slices = [SequenceSlice(slot, len(history[slot][0]), count) for slot, count in step]
        plan = tables.apply([], slices)
        indices = StepIndices.of(
            slices,
            plan,
            torch.empty(0),
            block_size=BLOCK_SIZE,
            device=pool.device,
            max_gathered_tokens=pool.max_gathered_tokens,
        )
        pool.prepare(indices)
        num_tokens = sum(piece.num_tokens for piece in slices)
        query = torch.randn(num_tokens, num_groups * NUM_KV_HEADS, HEAD_DIM, generator=generator)
        key = torch.randn(num_tokens, NUM_KV_HEADS, HEAD_DIM, generator=generator)
        value = torch.randn(num_tokens, NUM_KV_HEADS, HEAD_DIM, generator=generator)
        with mock.patch.object(prefill_chunk, "_TILED_DEVICE", tiled_device):
            output = PagedAttention(pool, slices, plan, indices).attend(
                1, query, key, value, scaling=0.3, sliding_window=sliding_window, softcap=softcap
            )
        row = 0
        for piece in slices:
            keys, values = history[piece.kv_slot]
            for _ in range(piece.num_tokens):
                keys.append(rounded(key[row], kv_format))
                values.append(rounded(value[row], kv_format))
                expected = attend_one(query[row], keys, values, 0.3, sliding_window, softcap)
                torch.testing.assert_close(output[row], expected, atol=1e-5, rtol=1e-5)
                row += 1


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_pool_too_small_for_a_block_is_refused(num_bytes: int) -> None:
    with pytest.raises(InsufficientMemoryError, match=f"{num_bytes} bytes of KV memory"):
        KvPool.within(
            num_bytes,
            num_layers=1,
            block_size=16,
            num_kv_heads=2,
            head_dim=8,
            kv_format=KvFormat.FLOAT16,
            device=torch.device("cpu"),
            max_num_blocks=10,
        )


@given(st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([1, 1, 1, 7])), max_size=60))
def test_what_is_gathered_is_bounded_by_the_kv_in_use(pieces: list[tuple[int, int]]) -> None:
    slices = [SequenceSlice(i, start, count) for i, (start, count) in enumerate(pieces)]
    groups = groups_of_like_length(slices, block_size=1, max_tokens=10**6)
    assert sorted(i for group in groups for i in group) == [
        i for i, piece in enumerate(slices) if piece.num_tokens == 1
    ]
    for group in groups:
        lengths = [slices[i].end_position for i in group]
        assert len(group) * max(lengths) <= MAX_PADDING * sum(lengths)
        assert group == sorted(group)


def test_sequences_of_like_length_are_computed_together() -> None:
    slices = [SequenceSlice(i, 100 + i, 1) for i in range(20)]
    assert groups_of_like_length(slices, block_size=16, max_tokens=10**6) == [list(range(20))]


def test_blocks_side_by_side_are_read_in_place() -> None:
    assert place_side_by_side((5,), 4, 3) == slice(20, 23)
    assert place_side_by_side((5, 6, 7), 4, 10) == slice(20, 30)
    assert place_side_by_side((5, 7), 4, 8) is None
    assert place_side_by_side((6, 5), 4, 8) is None


def test_a_sequence_that_follows_another_lies_side_by_side_too() -> None:
    tables = SlotTables(NUM_BLOCKS, BLOCK_SIZE)
    tables.apply([], [SequenceSlice(0, 0, 4 * BLOCK_SIZE)])
    (block_table,) = tables.apply([FreeSlot(0)], [SequenceSlice(1, 0, 3 * BLOCK_SIZE)]).block_tables
    assert place_side_by_side(block_table, BLOCK_SIZE, 3 * BLOCK_SIZE) is not None
