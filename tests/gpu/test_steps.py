"""What a step costs the host and the card, as counts that may only fall.

Counts need no card; see `fake_card`. Times do, and nothing here is a time.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from stage_server.compute.host_copies import POLL_S
from stage_server.core.batch import ForwardOutput, SequenceSlice
from stage_server.core.engine import DeviceLostError, finished
from stage_server.kernels.kernels import Kernels
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import INT4, DType, KvFormat, Precision
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import (
    attention_work,
    elementwise_work,
    head_work,
    matrices_work,
    num_launches,
    unpacking_work,
)
from stagecoach.roofline.work import Work
from tests.gpu.fake_card import ASIDE, WAIT, Counts, FakeCard, FakeEvent
from tests.gpu.fake_engines import GEMMA2, KERNELS, batch_for, fake_engine, shape_files
from tests.gpu.steps import GREEDY, LARGE_STEPS, SETTINGS, STEPS, Kind, Step, count_steps
from tests.shapes_only import ShapesOnly
from tests.tiny_files import tiny_files
from tests.tiny_models import FAMILIES, NUM_LAYERS


class Limit(NamedTuple):
    """The most of each that a kind of step may take."""

    launches_a_layer: float
    """Kernels, without those that a step needs once."""
    launches_besides: int
    """Of a stage with embedding, or of one with a head, whichever has more."""
    transfers: int
    """Copies between host and card, and other waits, of a stage that is not the last."""
    last_transfers: int
    """Of the last stage."""


LIMITS = {
    Kind.FIRST_CHUNK: Limit(18, 20, 2, 2),
    Kind.LATER_CHUNK: Limit(18, 20, 2, 2),
    Kind.DECODE_1: Limit(16, 19, 2, 2),
    Kind.DECODE_8: Limit(20, 23, 2, 2),
    Kind.MIXED: Limit(25, 24, 2, 2),
    Kind.FORK: Limit(20, 25, 2, 2),
    Kind.GREEDY_8: Limit(20, 23, 0, 2),
    Kind.SAMPLED_8: Limit(20, 72, 0, 2),
    Kind.LOGPROBS_8: Limit(20, 41, 0, 2),
    Kind.DECODE_96: Limit(20, 24, 2, 2),
}
"""Of lean layers without kernels of ours, by the shape of Llama-2 13B. Ties are 10 of the launches
besides where there are several candidates."""

KERNEL_LIMITS = {
    Kind.FIRST_CHUNK: Limit(10, 21, 2, 2),
    Kind.LATER_CHUNK: Limit(10, 21, 2, 2),
    Kind.DECODE_1: Limit(9, 20, 2, 2),
    Kind.DECODE_8: Limit(9, 20, 2, 2),
    Kind.MIXED: Limit(13, 21, 2, 2),
    Kind.FORK: Limit(9, 22, 2, 2),
    Kind.GREEDY_8: Limit(9, 20, 0, 2),
    Kind.SAMPLED_8: Limit(9, 69, 0, 2),
    Kind.LOGPROBS_8: Limit(9, 38, 0, 2),
    Kind.DECODE_96: Limit(9, 21, 2, 2),
}
"""Of lean layers with them. Whoever lowers a count lowers its limit. The aim was 12 launches a
layer at batch 1, 14 at 8 and 96, and 2 transfers everywhere."""


SENT, FETCHED = "host to card, without waiting", "card to host, without waiting"


FEW_BITS_LIMITS = {**KERNEL_LIMITS, Kind.DECODE_96: Limit(47, 21, 2, 2)}
"""Of the same over weights in few bits: for more than 64 tokens, a part of a matrix after another
is unpacked and multiplied, 21 of them in a layer."""

INT8_KV_LIMITS = {
    **KERNEL_LIMITS,
    Kind.FIRST_CHUNK: Limit(9, 22, 2, 2),
    Kind.LATER_CHUNK: Limit(9, 22, 2, 2),
    Kind.MIXED: Limit(11, 22, 2, 2),
    Kind.FORK: Limit(9, 24, 2, 2),
    Kind.DECODE_96: Limit(9, 22, 2, 2),
}
"""Of the same over KV in 8 bits: no chunk is converted, and blocks have scales to make ready."""

CONVERTED_KV_LIMITS = {
    **INT8_KV_LIMITS,
    Kind.FIRST_CHUNK: Limit(18, 22, 2, 2),
    Kind.LATER_CHUNK: Limit(18, 22, 2, 2),
    Kind.MIXED: Limit(29, 22, 2, 2),
}
"""Of the same on cards on whose tensor cores our kernels do not run: torch attends chunks."""

TILED_KV_LIMITS = {
    Kind.FIRST_CHUNK: Limit(76, 21, 2, 2),
    Kind.LATER_CHUNK: Limit(76, 21, 2, 2),
    Kind.DECODE_1: Limit(82, 19, 2, 2),
    Kind.DECODE_8: Limit(87, 23, 2, 2),
    Kind.MIXED: Limit(110, 25, 2, 2),
    Kind.FORK: Limit(87, 27, 2, 2),
    Kind.GREEDY_8: Limit(87, 23, 0, 2),
    Kind.SAMPLED_8: Limit(87, 72, 0, 2),
    Kind.LOGPROBS_8: Limit(87, 41, 0, 2),
    Kind.DECODE_96: Limit(111, 25, 2, 2),
}
"""Of lean layers without kernels of ours, over KV in 8 bits. Rounding to codes takes most of it."""

WITHOUT_TENSOR_CORES = Kernels(num_processors=28, has_tensor_cores=False)


def counts_of(
    layers: LayerRange, kernels: Kernels | None, form: Mapping[str, str]
) -> dict[Kind, Counts]:
    settings = {**SETTINGS, **form}
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), layers, kernels=kernels, **settings)
        return count_steps(card, engine, LARGE_STEPS)


@pytest.mark.parametrize(
    ("kernels", "form", "limits"),
    [
        (None, {}, LIMITS),
        (KERNELS, {}, KERNEL_LIMITS),
        (KERNELS, {"kv_dtype": "int8"}, INT8_KV_LIMITS),
        (WITHOUT_TENSOR_CORES, {"kv_dtype": "int8"}, CONVERTED_KV_LIMITS),
        (None, {"kv_dtype": "int8"}, TILED_KV_LIMITS),
        (KERNELS, {"weights": "int4"}, FEW_BITS_LIMITS),
    ],
    ids=["plain", "kernels", "kv-int8", "kv-int8-converted", "kv-int8-tiled", "int4"],
)
def test_launches_and_transfers_of_lean_layers_stay_within_their_limits(
    kernels: Kernels | None, form: Mapping[str, str], limits: Mapping[Kind, Limit]
) -> None:
    firsts = [counts_of(LayerRange(0, count), kernels, form) for count in (1, 3)]
    lasts = [counts_of(LayerRange(40 - count, 40), kernels, form) for count in (1, 3)]
    found = {}
    for kind in lasts[0]:
        few, many = (counts[kind].num_launches for counts in lasts)
        a_layer = (many - few) / 2
        besides = few - a_layer
        transfers = 0
        if kind in firsts[0]:
            few, many = (counts[kind].num_launches for counts in firsts)
            assert (many - few) / 2 == a_layer, "layers of all stages are alike"
            besides = max(besides, few - a_layer)
            transfers = firsts[0][kind].num_transfers
        last_transfers = lasts[0][kind].num_transfers
        assert lasts[0][kind].crossings == [SENT, FETCHED, WAIT]
        found[kind] = Limit(a_layer, round(besides), transfers, last_transfers)
    assert found == limits


def work_of(step: Step, stage: StageCost) -> Work:
    pieces = [(piece.start_position, piece.num_tokens) for piece in step.slices]
    return Work.of(pieces, len(pieces) if stage.is_last else 0)


def assert_charged(predicted: float, counted: float) -> None:
    """A plan that promises what the engine cannot do is worse than one that promises less."""
    assert counted <= 1.02 * predicted
    assert predicted <= 1.35 * counted


@pytest.mark.parametrize(
    ("files", "layers"),
    [
        (shape_files("llama-2-13b"), LayerRange(0, 2)),
        (shape_files("llama-2-13b"), LayerRange(20, 22)),
        (shape_files("llama-2-13b"), LayerRange(38, 40)),
        (tiny_files("gemma2", **GEMMA2), LayerRange(2, 4)),
    ],
    ids=["13b-first", "13b-middle", "13b-last", "gemma2-middle"],
)
@pytest.mark.parametrize(
    ("form", "kernels"),
    [
        ({}, KERNELS),
        ({"kv": KvFormat.INT8}, KERNELS),
        ({"kv": KvFormat.INT8}, WITHOUT_TENSOR_CORES),
        ({"weights": INT4}, KERNELS),
    ],
    ids=["plain", "kv-int8", "kv-int8-7.x", "int4"],
)
def test_plans_charge_the_launches_and_the_bytes_of_the_engine(
    files: ShapesOnly, layers: LayerRange, form: Mapping[str, Any], kernels: Kernels
) -> None:
    precision = Precision.uniform(DType.FLOAT16)._replace(**form)
    stage = StageCost(model=ModelShape.of(files.config, precision), layers=layers)
    settings = {
        **SETTINGS,
        "kv_dtype": precision.kv,
        "weights": "auto" if precision.weights.dtype else precision.weights.name,
    }
    steps = [step for step in LARGE_STEPS if step.logits in (None, GREEDY)]
    with FakeCard() as card:
        engine = fake_engine(files, layers, kernels=kernels, **settings)
        counts = count_steps(card, engine, steps)
    has_tensor_cores = kernels.has_tensor_cores
    for step in steps:
        if step.kind not in counts or step.kind is Kind.FORK:  # whose copies a plan leaves out
            continue
        work = work_of(step, stage)
        counted = counts[step.kind]
        launches = num_launches(stage, work, has_tensor_cores=has_tensor_cores)
        assert_charged(launches, counted.num_launches)
        kinds = (unpacking_work, matrices_work, elementwise_work, head_work)
        moved_bytes = sum(kind(stage, work).moved_bytes for kind in kinds)
        attention = attention_work(stage, work, has_tensor_cores=has_tensor_cores)
        moved_bytes += attention.moved_bytes
        # The card counts KV where kernels get it as a tensor, which those of decodes do not.
        kv_tokens = work.num_tokens + sum(
            piece.end_position for piece in step.slices if piece.is_single_token
        )
        moved_bytes -= stage.kv_bytes_per_token * kv_tokens
        assert_charged(moved_bytes, counted.moved_bytes.total())


CHUNKS = STEPS[:2]
OF_SCORES = {"bmm", "tanh", "_softmax", "masked_fill_"}
"""What attention launches where scores or a mask are written."""


@pytest.mark.parametrize(
    ("case", "kernels", "is_fused"),
    [
        ("gemma2", KERNELS, True),
        ("gemma2", WITHOUT_TENSOR_CORES, True),
        ("mistral-window", KERNELS, True),
        ("mistral-window", WITHOUT_TENSOR_CORES, False),
    ],
)
def test_a_chunk_that_torch_does_not_fuse_is_one_launch_a_layer(
    case: str, kernels: Kernels, *, is_fused: bool
) -> None:
    """Scores are capped, or a window ends within the chunk; a mask loses no tensor cores."""
    with FakeCard() as card:
        layers = LayerRange(0, 2)
        engine = fake_engine(tiny_files(case), layers, kernels=kernels, **SETTINGS)
        found = count_steps(card, engine, CHUNKS)
    for step in CHUNKS:
        launches = found[step.kind].launches
        assert launches["stagecoach::prefill"] == (len(layers) if is_fused else 0)
        assert launches["attention"] == (0 if is_fused else len(layers))
        assert (OF_SCORES & launches.keys() == set()) == is_fused


@pytest.mark.parametrize(
    ("kernels", "pieces", "most"),
    [
        (WITHOUT_TENSOR_CORES, [SequenceSlice(1, 768, 256)], 36),
        (None, [SequenceSlice(slot, 1023, 1) for slot in range(4)], 125),
    ],
    ids=["chunk", "decodes"],
)
def test_behind_a_context_kv_of_8_bits_is_not_converted_in_tiles_of_a_core(
    kernels: Kernels | None, pieces: list[SequenceSlice], most: int
) -> None:
    """There were 572 launches for the chunk, and 1108 for the decodes."""
    files, layers = shape_files("llama-2-13b"), LayerRange(20, 21)
    with FakeCard() as card:
        engine = fake_engine(
            files, layers, kernels=kernels, kv_memory_bytes=1 << 30, kv_dtype="int8"
        )
        engine._slots.apply(
            (), [SequenceSlice(piece.kv_slot, 0, piece.start_position) for piece in pieces]
        )
        with card.record() as counts:
            engine.forward(batch_for(engine, pieces))
    assert counts.num_launches <= most


def test_plans_charge_the_conversion_of_a_long_context() -> None:
    """Beside it the weights of a layer are little, so a plan that left it out would be seen."""
    files, layers = shape_files("llama-2-13b"), LayerRange(20, 21)
    precision = Precision.uniform(DType.FLOAT16)._replace(kv=KvFormat.INT8)
    stage = StageCost(model=ModelShape.of(files.config, precision), layers=layers)
    with FakeCard() as card:
        engine = fake_engine(
            files,
            layers,
            kernels=WITHOUT_TENSOR_CORES,
            kv_memory_bytes=1 << 30,
            kv_dtype=KvFormat.INT8,
        )
        engine._slots.apply((), [SequenceSlice(0, 0, 3584)])
        batch = batch_for(engine, [SequenceSlice(0, 3584, 256)])
        engine.forward(batch)  # grows the rotary table
        engine.free_all_slots()
        # Blocks of the second lie apart, so they are gathered too.
        engine._slots.apply((), [SequenceSlice(1, 0, 16), SequenceSlice(0, 0, 16)])
        engine._slots.apply((), [SequenceSlice(0, 16, 3568)])
        with card.record() as counts:
            engine.forward(batch)
    work = Work.of([(3584, 256)], 0)
    kinds = (matrices_work, elementwise_work)
    moved_bytes = sum(kind(stage, work).moved_bytes for kind in kinds)
    attention = attention_work(stage, work, has_tensor_cores=False)
    assert_charged(moved_bytes + attention.moved_bytes, counts.moved_bytes.total())
    launches = num_launches(stage, work, has_tensor_cores=False)
    assert_charged(launches, counts.num_launches)


def test_a_chunk_within_its_window_is_attended_by_torch() -> None:
    with FakeCard() as card:
        files = tiny_files("mistral-window", head_dim=16, sliding_window=65)
        engine = fake_engine(files, LayerRange(0, 2), kernels=KERNELS, **SETTINGS)
        found = count_steps(card, engine, CHUNKS)
    assert [found[step.kind].launches["stagecoach::prefill"] for step in CHUNKS] == [0, 0]


UNLIKE = {
    *("llama", "llama-gelu", "mistral-window", "phi3", "phi3-longrope", "qwen3", "starcoder2"),
    *("gemma2", "gemma3_text", "glm4", "granite", "olmo2", "cohere2"),
}
"""Families that have something to compute that the others have not."""


@pytest.mark.parametrize(
    ("case", "form"),
    [
        *(
            pytest.param(case, {}, marks=() if case in UNLIKE else pytest.mark.slow)
            for case in FAMILIES
        ),
        *(
            (case, {"kv_dtype": "int8", "weights": "int4"})
            for case in ("llama", "mistral-window", "gemma2", "phi3")
        ),
    ],
)
def test_every_family_computes_every_kind_of_step_on_the_card_alone(
    case: str, form: Mapping[str, str]
) -> None:
    """A tensor on the wrong device fails, whichever operation meets it."""
    files, layers = tiny_files(case), LayerRange(0, 2)
    settings = {**SETTINGS, **form}
    with FakeCard() as card:
        first = fake_engine(files, layers, kernels=KERNELS, **settings)
        without_head = count_steps(card, first, STEPS[:3])
        last = fake_engine(files, LayerRange(NUM_LAYERS - 2, NUM_LAYERS), **settings)
        counts = count_steps(card, last)
    assert without_head.keys() == {step.kind for step in STEPS[:3]}
    assert counts.keys() == {step.kind for step in STEPS}
    stage = StageCost(model=ModelShape.of(files.config, first.info.precision), layers=layers)
    decode = STEPS[2]  # Heads as small as these take more kernels for a chunk than real ones do.
    predicted, counted = (
        num_launches(stage, work_of(decode, stage)),
        without_head[decode.kind].num_launches,
    )
    # Around the layers a family may have some more, such as those of long rotary tables.
    assert counted <= predicted + 10
    assert predicted <= 1.35 * counted
    for kind, counts_of_kind in counts.items():
        assert counts_of_kind.num_transfers <= LIMITS[kind].last_transfers


@pytest.mark.parametrize("layers", [LayerRange(0, 2), LayerRange(38, 40)], ids=["first", "last"])
def test_a_step_is_launched_without_waiting_for_the_one_before(layers: LayerRange) -> None:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), layers, **SETTINGS)
        engine.warm_up()
        batches = [
            batch_for(
                engine,
                [SequenceSlice(slot, 0, 9)],
                logits=[LogitsRequest(row=8, num_candidates=64, min_mass=0.9)],
            )
            for slot in range(2)
        ]
        with card.record() as counts:
            first, second = (engine.launch(batch) for batch in batches)
            assert counts.crossings == [SENT, FETCHED] * 2
            for forward in (first, second):
                assert not isinstance(forward, ForwardOutput)
                assert forward.due_in_s() == POLL_S
                finished(forward)
                assert forward.due_in_s() == 0
    assert counts.crossings == [SENT, FETCHED] * 2 + [WAIT] * 2


def test_rows_whose_logits_nobody_wants_are_waited_for_as_others_are() -> None:
    """Or the step would seem to take no time, and the next one the time of both."""
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(39, 40), **SETTINGS)
        engine.warm_up()
        with card.record() as counts:
            engine.forward(batch_for(engine, [SequenceSlice(0, 0, 9)]))
    assert counts.crossings == [SENT, WAIT]


def test_whole_rows_that_are_asked_for_come_with_the_others() -> None:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(39, 40), **SETTINGS)
        engine.warm_up()
        whole = LogitsRequest(row=0, num_candidates=engine.info.vocab_size)
        reduced = LogitsRequest(row=1, num_candidates=64)
        slices = [SequenceSlice(0, 0, 1), SequenceSlice(1, 0, 1)]
        with card.record() as counts:
            first, second = (
                engine.launch(batch_for(engine, slices, logits=[whole, reduced])) for _ in range(2)
            )
            rows = finished(first).logits
        assert counts.crossings == [SENT, FETCHED, FETCHED] * 2 + [WAIT]
        assert rows[0].full is not None
        assert rows[0].full.shape == (engine.info.vocab_size,)
        assert rows[1].full is None
        assert [row.row for row in finished(second).logits] == [0, 1]


def test_rows_that_turn_out_to_be_needed_whole_do_not_wait_for_the_next_step() -> None:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(39, 40), **SETTINGS)
        engine.warm_up()
        # All logits of the card are 0, which no candidates are far enough from.
        wanted = [LogitsRequest(row=i, num_candidates=64, min_gap=float(i)) for i in range(3)]
        slices = [SequenceSlice(slot, 0, 1) for slot in range(3)]
        first, second = (engine.launch(batch_for(engine, slices, logits=wanted)) for _ in range(2))
        with card.record() as counts:
            rows = finished(first).logits
        assert counts.crossings == [WAIT, *2 * [FETCHED + ASIDE], WAIT + ASIDE]
        assert [row.full is None for row in rows] == [True, False, False]
        assert [row.row for row in finished(second).logits] == [0, 1, 2]


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (torch.AcceleratorError("an illegal memory access"), DeviceLostError),
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceMemoryError),
    ],
)
def test_what_a_card_fails_with_is_named_at_the_end_of_a_step(
    raised: Exception, named: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_event: object) -> None:
        raise raised

    with FakeCard():
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(0, 1), **SETTINGS)
        forward = engine.launch(batch_for(engine, [SequenceSlice(0, 0, 9)]))
        assert not isinstance(forward, ForwardOutput)
        monkeypatch.setattr(FakeEvent, "synchronize", fail)
        if isinstance(raised, torch.AcceleratorError):
            monkeypatch.setattr(FakeEvent, "query", fail)
            assert forward.due_in_s() == 0
        with pytest.raises(named):
            forward.finish()
