"""The memory of micro-batches: the formula of plans against the engine, and the KV it leaves."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stage_server.compute.memory_profile import StepSizes, activation_peak
from stage_server.core.batch import SequenceSlice
from stage_server.core.engine import finished
from stage_server.kernels.kernels import Kernels
from stagecoach.contract.errors import DeviceMemoryError, InsufficientMemoryError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.roofline.activation_memory import activation_bytes, num_prompt_rows
from stagecoach.roofline.devices import gpu_named
from stagecoach.roofline.kv_memory import CONTEXT_BYTES, RESERVE_BYTES, kv_memory_bytes
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from tests.gpu.fake_card import CUDA, WAIT, FakeCard
from tests.gpu.fake_engines import (
    GEMMA2,
    KERNELS,
    batch_for,
    fake_engine,
    fake_stack,
    shape_files,
)
from tests.gpu.test_steps import FETCHED, SENT
from tests.shapes_only import ShapesOnly
from tests.tiny_files import tiny_files

MIB = 1 << 20
GIB = 1 << 30
FLOAT16 = Precision.uniform(DType.FLOAT16)
PHI3: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}

MAX_EXCESS = 1.3
"""How much more than it takes a micro-batch may be expected to take."""


def cost_of(files: ShapesOnly, layers: LayerRange, precision: Precision = FLOAT16) -> StageCost:
    return StageCost(model=ModelShape.of(files.config, precision), layers=layers)


@pytest.mark.parametrize(
    ("files", "layers"),
    [
        (shape_files("llama-2-13b"), LayerRange(13, 15)),
        (shape_files("llama-2-13b"), LayerRange(38, 40)),
        (shape_files("llama-3.1-8b"), LayerRange(30, 32)),
        (shape_files("llama-1b"), LayerRange(0, 2)),
        (tiny_files("phi3", **PHI3), LayerRange(2, 4)),
        (tiny_files("gemma2", **GEMMA2), LayerRange(2, 4)),
    ],
    ids=["13b-middle", "13b-last", "8b-last", "1b-first", "phi3-middle", "gemma2-middle"],
)
@pytest.mark.parametrize("kv_format", [KvFormat.FLOAT16, KvFormat.INT8])
@pytest.mark.parametrize(("num_tokens", "context_tokens"), [(512, 2049), (2048, 4096)])
def test_the_formula_holds_what_the_engine_takes(
    files: ShapesOnly,
    layers: LayerRange,
    num_tokens: int,
    context_tokens: int,
    kv_format: KvFormat,
) -> None:
    sizes = StepSizes(
        max_num_batched_tokens=num_tokens,
        max_num_seqs=64,
        context_tokens=context_tokens,
        block_size=16,
    )
    with FakeCard():
        stack = fake_stack(files, layers, kv_dtype=kv_format, kernels=KERNELS)
        taken = activation_peak(stack, sizes)
    expected = activation_bytes(
        cost_of(files, layers, FLOAT16._replace(kv=kv_format)),
        max_num_batched_tokens=num_tokens,
        max_num_seqs=64,
        context_tokens=context_tokens,
    )
    assert taken <= expected <= MAX_EXCESS * taken, f"{taken / MIB:.0f} {expected / MIB:.0f} MiB"


@pytest.mark.parametrize("kv_format", [KvFormat.FLOAT32, KvFormat.INT8])
@pytest.mark.parametrize(
    ("files", "layers"),
    [
        (shape_files("llama-2-13b"), LayerRange(13, 15)),
        (shape_files("llama-3.1-8b"), LayerRange(20, 22)),
        (tiny_files("gemma2", **GEMMA2), LayerRange(2, 4)),
    ],
    ids=["13b", "8b", "gemma2"],
)
@pytest.mark.parametrize(("num_tokens", "context_tokens"), [(512, 4096), (2048, 2049)])
def test_the_formula_holds_what_cards_take_that_convert_kv(
    files: ShapesOnly,
    layers: LayerRange,
    num_tokens: int,
    context_tokens: int,
    kv_format: KvFormat,
) -> None:
    """On cards before 8.0 it was as if a kernel of ours attended chunks."""
    sizes = StepSizes(
        max_num_batched_tokens=num_tokens,
        max_num_seqs=64,
        context_tokens=context_tokens,
        block_size=16,
    )
    kernels = Kernels(num_processors=28, has_tensor_cores=False)
    with FakeCard():
        taken = activation_peak(
            fake_stack(files, layers, kv_dtype=kv_format, kernels=kernels), sizes
        )
    expected = activation_bytes(
        cost_of(files, layers, FLOAT16._replace(kv=kv_format)),
        max_num_batched_tokens=num_tokens,
        max_num_seqs=64,
        context_tokens=context_tokens,
        has_tensor_cores=False,
    )
    assert taken <= expected <= MAX_EXCESS * taken, f"{taken / MIB:.0f} {expected / MIB:.0f} MiB"


def test_a_chunk_whose_scores_are_capped_takes_no_memory_for_its_context() -> None:
    files, layers = tiny_files("gemma2", **GEMMA2), LayerRange(2, 4)
    taken = {}
    for kernels in (KERNELS, None):
        with FakeCard() as card:
            engine = fake_engine(files, layers, kernels=kernels, kv_memory_bytes=GIB)
            for start in (4096, 0, 4096):  # the first grows the rotary table
                engine._slots.apply((), [SequenceSlice(1, 0, start)] if start else [])
                batch = batch_for(engine, [SequenceSlice(1, start, 512)])
                with card.record() as counts:
                    engine.forward(batch)
                engine.free_all_slots()
                taken[kernels, start] = counts.taken_bytes
    assert taken[KERNELS, 4096] - taken[KERNELS, 0] <= 4096, "the block table"
    scores_bytes = 8 * 512 * (4096 + 512) * (2 + 2 + 4)
    assert taken[None, 4096] - taken[KERNELS, 4096] > scores_bytes / 2


class TestKvOnA12GbCard:
    """14 layers of Llama-2 13B, the stage that a third of the model on such a card is."""

    FILES = shape_files("llama-2-13b")
    LAYERS = LayerRange(0, 14)

    def test_what_is_left_holds_every_default_micro_batch(self) -> None:
        with FakeCard(memory_bytes=12 * GIB, used_bytes=CONTEXT_BYTES) as card:
            engine = fake_engine(self.FILES, self.LAYERS, kernels=KERNELS)
            info = engine.info
            assert info.max_num_batched_tokens == 512
            planned = kv_memory_bytes(cost_of(self.FILES, self.LAYERS), gpu_named("rtx-3060-12gb"))
            assert planned <= info.kv_bytes <= 1.02 * planned
            assert card.free_bytes > RESERVE_BYTES
            with card.record() as prefill:
                engine.forward(batch_for(engine, [SequenceSlice(0, 0, 512)]))
            with card.record() as behind:
                engine._slots.apply((), [SequenceSlice(1, 0, 3000)])
                engine.forward(batch_for(engine, [SequenceSlice(1, 3000, 512)]))
            # As many sequences as there is KV for, of the lengths that are hardest to group.
            engine.free_all_slots()
            lengths = [16 + 7 * i % 150 for i in range(96)]
            lengths = lengths[: info.num_kv_blocks // 12]
            held = [SequenceSlice(slot, 0, length) for slot, length in enumerate(lengths)]
            engine._slots.apply((), held)
            with card.record() as decode:
                rows = [SequenceSlice(slot, length, 1) for slot, length in enumerate(lengths)]
                engine.forward(batch_for(engine, rows))
            for counts in (prefill, behind, decode):
                assert engine.activation_bytes is not None
                assert 0 < counts.taken_bytes <= engine.activation_bytes

    def test_two_stages_on_one_card_take_their_shares(self) -> None:
        memory_bytes = 6 * GIB
        with FakeCard(memory_bytes=memory_bytes, used_bytes=CONTEXT_BYTES) as card:
            first = fake_engine(self.FILES, LayerRange(1, 3), device_share=0.5)
            taken = memory_bytes - card.free_bytes
        with FakeCard(memory_bytes=memory_bytes, used_bytes=taken + CONTEXT_BYTES) as card:
            second = fake_engine(self.FILES, LayerRange(3, 5), device_share=0.5)
            assert card.free_bytes > 2 * RESERVE_BYTES
        assert first.info.kv_bytes == pytest.approx(second.info.kv_bytes, rel=0.15)

    def test_what_a_screen_holds_is_not_counted_as_free(self) -> None:
        found = []
        for used_bytes in (CONTEXT_BYTES, CONTEXT_BYTES + 700 * MIB):
            with FakeCard(memory_bytes=4 * GIB, used_bytes=used_bytes):
                found.append(fake_engine(self.FILES, LayerRange(1, 2)).info.kv_bytes)
        assert found[0] - found[1] == pytest.approx(700 * MIB, rel=0.02)

    def test_kv_memory_that_was_asked_for_is_taken_as_it_is(self) -> None:
        with FakeCard(memory_bytes=4 * GIB, used_bytes=CONTEXT_BYTES):
            info = fake_engine(self.FILES, LayerRange(1, 2), kv_memory_bytes=GIB).info
        assert GIB - info.kv_bytes < info.kv_bytes / info.num_kv_blocks

    def test_a_card_without_room_for_a_micro_batch_is_refused_with_the_remedy(self) -> None:
        with (
            FakeCard(memory_bytes=1600 * MIB, used_bytes=CONTEXT_BYTES),
            pytest.raises(InsufficientMemoryError, match="lower --max-num-batched-tokens"),
        ):
            fake_engine(self.FILES, LayerRange(1, 2), max_num_batched_tokens=2**14)


ALL_SLOTS = [SequenceSlice(slot, 0, 1) for slot in range(256)]
ALL_LOGITS = [
    LogitsRequest(row=i, num_candidates=64, min_mass=0.9, wants_unit_log_sum_exp=True)
    for i in range(256)
]


def test_the_last_stage_has_room_for_the_logits_of_all_its_sequences_twice() -> None:
    """Those of a step are kept until it is finished, and the next is launched before."""
    files = shape_files("llama-3.1-8b")
    with FakeCard(memory_bytes=6 * GIB, used_bytes=CONTEXT_BYTES) as card:
        engine = fake_engine(files, LayerRange(31, 32), max_model_len=4096)
        batch = batch_for(engine, ALL_SLOTS, logits=ALL_LOGITS)
        with card.record() as counts:
            launched = [engine.launch(batch) for _ in range(2)]
            for forward in launched:
                finished(forward)
        assert engine.activation_bytes is not None
        assert 0.95 * engine.activation_bytes <= counts.taken_bytes <= engine.activation_bytes


def test_a_step_without_room_beside_the_one_before_is_launched_in_parts() -> None:
    files = shape_files("llama-3.1-8b")
    with FakeCard(memory_bytes=6 * GIB, used_bytes=CONTEXT_BYTES) as card:
        engine = fake_engine(files, LayerRange(31, 32), max_model_len=4096)
        batch = batch_for(engine, ALL_SLOTS, logits=ALL_LOGITS)
        with card.record() as counts:
            engine.forward(batch)
        room = torch.empty(
            card.free_bytes - counts.taken_bytes - MIB, dtype=torch.uint8, device=CUDA
        )
        first, second = (engine.launch(batch) for _ in range(2))
        assert engine._steps._decode_size.max_rows == 128
        for forward in (first, second):
            rows = finished(forward).logits
            assert [row.row for row in rows] == list(range(256))
        del room


NUM_TOKENS = 500
PROMPT = [SequenceSlice(0, 0, NUM_TOKENS)]
LEFT_BYTES = 24 * MIB
"""A fraction of what the logits of all rows of the prompt take."""


def prompt_logits(**wanted: Any) -> list[LogitsRequest]:
    return [LogitsRequest(row=row, **wanted) for row in range(NUM_TOKENS)]


@pytest.mark.parametrize(
    "wanted",
    [{"num_candidates": 1}, {"num_candidates": 64, "min_gap": 0.0}, {"num_candidates": 10**6}],
    ids=["greedy", "min-p", "whole"],
)
def test_a_part_gives_its_logits_back_before_the_next_part_is_launched(
    wanted: dict[str, Any],
) -> None:
    """Or all parts together would take what the whole takes, and no size would fit."""
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-1b"), LayerRange(21, 22), kv_memory_bytes=64 * MIB)
        batch = batch_for(engine, PROMPT, logits=prompt_logits(**wanted))
        engine.forward(batch_for(engine, PROMPT))  # grows the rotary table
        room = torch.empty(card.free_bytes - LEFT_BYTES, dtype=torch.uint8, device=CUDA)
        with card.record() as counts:
            rows = finished(engine.launch(batch)).logits
        assert [row.row for row in rows] == list(range(NUM_TOKENS))
        max_rows = engine._steps._prefill_size.max_rows
        assert max_rows is not None
        assert max_rows > 10
        num_parts = -(-NUM_TOKENS // max_rows)
        if wanted["num_candidates"] < 10**6:
            assert counts.crossings[-3 * num_parts :] == [SENT, FETCHED, WAIT] * num_parts
        del room


def test_the_last_part_of_a_step_is_left_to_the_card() -> None:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-1b"), LayerRange(21, 22), kv_memory_bytes=64 * MIB)
        engine._steps._decode_size.max_rows = 2
        batch = batch_for(engine, ALL_SLOTS[:5], logits=ALL_LOGITS[:5])
        with card.record() as counts:
            launched = [engine.launch(batch) for _ in range(2)]
            cut = [SENT, FETCHED, WAIT] * 2 + [SENT, FETCHED]
            assert counts.crossings == cut * 2
            for forward in launched:
                assert [row.row for row in finished(forward).logits] == list(range(5))
        assert counts.crossings == cut * 2 + [WAIT] * 2


def test_a_row_that_does_not_fit_teaches_nothing_about_sizes() -> None:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-1b"), LayerRange(21, 22), kv_memory_bytes=64 * MIB)
        batch = batch_for(engine, PROMPT, logits=prompt_logits(num_candidates=1))
        room = torch.empty(card.free_bytes, dtype=torch.uint8, device=CUDA)
        with pytest.raises(DeviceMemoryError):
            engine.forward(batch)
        del room
        with card.record() as counts:
            engine.forward(batch)
        assert counts.crossings == [SENT, FETCHED, WAIT]


def test_the_logits_of_a_prompt_are_never_there_at_once_and_no_card_is_waited_for() -> None:
    """A launch waits for nothing, and one copy brings back what was found of all rows."""
    files = shape_files("llama-1b")
    num_rows = NUM_TOKENS - 1
    wanted = PromptLogitsRequest(first_row=0, token_ids=(1,) * num_rows, num_candidates=20)
    with FakeCard() as card:
        engine = fake_engine(files, LayerRange(21, 22), kv_memory_bytes=64 * MIB)
        bare = batch_for(engine, PROMPT)
        engine.forward(bare)  # grows the rotary table
        batch = replace(bare, prompt_logits=(wanted,))
        with card.record() as without:
            engine.forward(bare)
        with card.record() as launch:
            launched = engine.launch(batch)
        with card.record() as finish:
            (found,) = finished(launched).prompt_logits
    assert WAIT not in launch.crossings
    assert launch.num_transfers == without.num_transfers + 1
    assert finish.num_transfers == 0
    assert found.token_logits.shape == (num_rows,)
    assert found.candidate_ids.shape == (num_rows, 20)
    at_once = num_prompt_rows(files.config.vocab_size)
    assert at_once < num_rows
    bytes_at_once = at_once * files.config.vocab_size * 4
    assert launch.taken_bytes - without.taken_bytes < 3.25 * bytes_at_once


def test_sums_of_hidden_states_are_one_copy_and_no_card_is_waited_for() -> None:
    """Who asks for them pays for them: one norm, one sum a request, and what joins them."""
    pieces = [SequenceSlice(0, 0, 200), SequenceSlice(1, 0, 100), SequenceSlice(2, 0, 50)]
    wanted = (
        HiddenSumRequest(first_row=0, num_rows=200),
        HiddenSumRequest(first_row=299, num_rows=1),
        HiddenSumRequest(first_row=310, num_rows=40),
    )
    with FakeCard() as card:
        files = shape_files("llama-1b")
        engine = fake_engine(files, LayerRange(21, 22), kv_memory_bytes=64 * MIB)
        bare = batch_for(engine, pieces)
        engine.forward(bare)  # grows the rotary table
        with card.record() as without:
            engine.forward(bare)
        counts = []
        for sums in (wanted, wanted[:1]):
            with card.record() as launch:
                launched = engine.launch(replace(bare, hidden_sums=sums))
            with card.record() as finish:
                found = finished(launched).hidden_sums
            assert WAIT not in launch.crossings
            assert launch.num_transfers == without.num_transfers + 1
            assert finish.num_transfers == 0
            assert [one.first_row for one in found] == [one.first_row for one in sums]
            assert {one.sum.shape for one in found} == {(files.config.hidden_size,)}
            counts.append(launch.num_launches)
    assert counts[0] - counts[1] == 2  # a sum each
    assert counts[1] - without.num_launches <= 4
    hidden_bytes = 350 * files.config.hidden_size * 4
    assert launch.taken_bytes - without.taken_bytes <= 2 * hidden_bytes
