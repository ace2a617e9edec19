"""An emulated stage is a function of the sequence, whatever happens to slots on the way."""

import time

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.core.engine import finished
from stage_server.emulation.emulated_engine import EmulatedEngine, EmulatedForward
from stage_server.process.build_engine import build_engine
from stagecoach.contract.errors import KvFullError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot
from stagecoach.model_files import open_model
from tests.emulated_tokens import expected_token
from tests.layer_ranges import split_evenly

MODEL = "shape:llama-160m"
NUM_SLOTS = 4
BLOCK_SIZE = 4
FILES = open_model(MODEL)


def create_engine(layers: LayerRange, num_blocks: int = 12) -> EmulatedEngine:
    engine = build_engine(
        StageConfig(
            model=MODEL,
            layers=layers,
            engine="emulated",
            emulate="h200-141gb",
            kv_block_size=BLOCK_SIZE,
            kv_memory_bytes=num_blocks * BLOCK_SIZE * len(layers) * 2 * 768 * 2,
            max_num_seqs=NUM_SLOTS,
        ),
        FILES,
    )
    assert isinstance(engine, EmulatedEngine)
    assert engine.info.num_kv_blocks == num_blocks
    return engine


def run(
    engines: list[EmulatedEngine],
    ops: list[SlotOp],
    slices: list[SequenceSlice],
    token_ids: list[int],
) -> list[int]:
    """Sends a micro-batch through all stages; returns the best token after every row."""
    batch = ForwardBatch(
        slices=tuple(slices), slot_ops=tuple(ops), token_ids=torch.tensor(token_ids)
    )
    for engine in engines[:-1]:
        hidden = finished(engine.launch(batch)).hidden_states
        batch = ForwardBatch(slices=tuple(slices), slot_ops=tuple(ops), hidden_states=hidden)
    wanted = tuple(LogitsRequest(row=row, num_candidates=1) for row in range(len(token_ids)))
    last = ForwardBatch(
        slices=batch.slices,
        slot_ops=batch.slot_ops,
        token_ids=batch.token_ids,
        hidden_states=batch.hidden_states,
        logits=wanted,
    )
    return [row.candidate_ids[0] for row in finished(engines[-1].launch(last)).logits]


@settings(max_examples=60)
@given(data=st.data(), num_stages=st.integers(1, 3))
def test_tokens_depend_on_the_sequence_alone(data: st.DataObject, num_stages: int) -> None:
    """Random chunks, repeated steps, forks, truncates and frees, against lists of tokens."""
    engines = [create_engine(layers) for layers in split_evenly(12, num_stages)]
    held: dict[int, list[int]] = {slot: [] for slot in range(NUM_SLOTS)}
    tokens = st.integers(0, 3) | st.just(31999)
    for _ in range(data.draw(st.integers(1, 6))):
        ops: list[SlotOp] = []
        wanted = {slot: list(sequence) for slot, sequence in held.items()}
        for slot in data.draw(st.lists(st.sampled_from(range(NUM_SLOTS)), max_size=2)):
            keep = data.draw(st.integers(0, len(wanted[slot])))
            other = (slot + 1) % NUM_SLOTS
            if keep and data.draw(st.booleans()):
                ops += [FreeSlot(other), ForkSlot(slot, other, keep)]
                wanted[other] = wanted[slot][:keep]
            else:
                ops.append(TruncateSlot(slot, keep))
                wanted[slot] = wanted[slot][:keep]
        slices, token_ids, expected = [], [], []
        running = st.lists(st.sampled_from(range(NUM_SLOTS)), min_size=1, max_size=3, unique=True)
        for slot in data.draw(running):
            start = data.draw(st.integers(max(0, len(wanted[slot]) - 3), len(wanted[slot])))
            chunk = data.draw(st.lists(tokens, min_size=1, max_size=6))
            slices.append(SequenceSlice(slot, start, len(chunk)))
            token_ids += chunk
            wanted[slot] = wanted[slot][:start] + chunk
            expected += [expected_token(wanted[slot][: start + i + 1]) for i in range(len(chunk))]
        try:
            assert run(engines, ops, slices, token_ids) == expected
        except KvFullError:  # nothing took effect, on any stage: their pools are equally large
            continue
        held = wanted
    for engine in engines:
        engine.free_all_slots()
        assert engine.num_free_kv_blocks == engine.info.num_kv_blocks


def test_memory_that_was_mixed_up_on_one_stage_spoils_the_tokens() -> None:
    first, second = (create_engine(layers) for layers in split_evenly(12, 2))
    prompt = [5, 6, 7]
    run([first, second], [], [SequenceSlice(0, 0, 3), SequenceSlice(1, 0, 3)], [5, 6, 7, 5, 6, 8])
    step = [SequenceSlice(0, 3, 1)]
    assert run([first, second], [], step, [9]) == [expected_token([*prompt, 9])]
    second.launch(ForwardBatch(slices=(), slot_ops=(FreeSlot(0), ForkSlot(1, 0, 3))))
    assert run([first, second], [], step, [9]) != [expected_token([*prompt, 9])]


def test_a_card_begins_a_micro_batch_when_it_has_ended_the_one_before() -> None:
    engine = create_engine(LayerRange(0, 6))
    batches = [
        ForwardBatch(slices=(SequenceSlice(slot, 0, 9),), token_ids=torch.arange(9))
        for slot in range(3)
    ]
    launched = [engine.launch(batch) for batch in batches]
    ends_ns = [forward.end_ns for forward in launched if isinstance(forward, EmulatedForward)]
    duration_ns = engine._duration_ns(batches[0])
    assert ends_ns[1] - ends_ns[0] >= duration_ns > 0
    assert ends_ns[2] - ends_ns[1] >= duration_ns
    for forward, end_ns in zip(launched, ends_ns, strict=True):
        finished(forward)
        assert time.perf_counter_ns() >= end_ns
