"""What a step costs the host and the card, as counts that may only fall.

Counts need no card; see `fake_card`. Times do, and nothing here is a time.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch

from stage_server.compute.host_copies import POLL_S
from stage_server.core.batch import ForwardOutput, SequenceSlice
from stage_server.core.engine import DeviceLostError, finished
from stage_server.kernels.kernels import Kernels
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import (
    attention_work,
    elementwise_work,
    head_work,
    matrices_work,
    num_launches,
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


INT8_KV_LIMITS = {
    **KERNEL_LIMITS,
    Kind.FIRST_CHUNK: Limit(9, 22, 2, 2),
    Kind.LATER_CHUNK: Limit(9, 22, 2, 2),
    Kind.MIXED: Limit(11, 22, 2, 2),
    Kind.FORK: Limit(9, 24, 2, 2),
    Kind.DECODE_96: Limit(9, 22, 2, 2),
}
"""Of the same over KV in 8 bits: no chunk is converted, and blocks have scales to make ready."""


def counts_of(
    layers: LayerRange, kernels: Kernels | None, kv_dtype: str = "auto"
) -> dict[Kind, Counts]:
    settings = {**SETTINGS, "kv_dtype": kv_dtype}
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), layers, kernels=kernels, **settings)
        return count_steps(card, engine, LARGE_STEPS)


@pytest.mark.parametrize(
    ("kernels", "kv_dtype", "limits"),
    [
        (None, "auto", LIMITS),
        (KERNELS, "auto", KERNEL_LIMITS),
        (KERNELS, "int8", INT8_KV_LIMITS),
    ],
)
def test_launches_and_transfers_of_lean_layers_stay_within_their_limits(
    kernels: Kernels | None, kv_dtype: str, limits: Mapping[Kind, Limit]
) -> None:
    firsts = [counts_of(LayerRange(0, count), kernels, kv_dtype) for count in (1, 3)]
    lasts = [counts_of(LayerRange(40 - count, 40), kernels, kv_dtype) for count in (1, 3)]
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
@pytest.mark.parametrize("kv_format", [KvFormat.FLOAT16, KvFormat.INT8])
def test_plans_charge_the_launches_and_the_bytes_of_the_engine(
    files: ShapesOnly, layers: LayerRange, kv_format: KvFormat
) -> None:
    precision = Precision.uniform(DType.FLOAT16)._replace(kv=kv_format)
    stage = StageCost(model=ModelShape.of(files.config, precision), layers=layers)
    settings = {**SETTINGS, "kv_dtype": kv_format}
    steps = [step for step in LARGE_STEPS if step.logits in (None, GREEDY)]
    with FakeCard() as card:
        engine = fake_engine(files, layers, kernels=KERNELS, **settings)
        counts = count_steps(card, engine, steps)
    for step in steps:
        if step.kind not in counts or step.kind is Kind.FORK:  # whose copies a plan leaves out
            continue
        work = work_of(step, stage)
        counted = counts[step.kind]
        assert_charged(num_launches(stage, work), counted.num_launches)
        kinds = (matrices_work, attention_work, elementwise_work, head_work)
        moved_bytes = sum(kind(stage, work).moved_bytes for kind in kinds)
        # The card counts KV where kernels get it as a tensor, which those of decodes do not.
        kv_tokens = work.num_tokens + sum(
            piece.end_position for piece in step.slices if piece.is_single_token
        )
        moved_bytes -= stage.kv_bytes_per_token * kv_tokens
        assert_charged(moved_bytes, counted.moved_bytes.total())


WITHOUT_TENSOR_CORES = Kernels(num_processors=28, has_tensor_cores=False)
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


def test_a_chunk_within_its_window_is_attended_by_torch() -> None:
    with FakeCard() as card:
        files = tiny_files("mistral-window", head_dim=16, sliding_window=65)
        engine = fake_engine(files, LayerRange(0, 2), kernels=KERNELS, **SETTINGS)
        found = count_steps(card, engine, CHUNKS)
    assert [found[step.kind].launches["stagecoach::prefill"] for step in CHUNKS] == [0, 0]


@pytest.mark.parametrize(
    ("case", "kv_dtype"),
    [
        *((case, "auto") for case in FAMILIES),
        *((case, "int8") for case in ("llama", "mistral-window", "gemma2", "phi3")),
    ],
)
def test_every_family_computes_every_kind_of_step_on_the_card_alone(
    case: str, kv_dtype: str
) -> None:
    """A tensor on the wrong device fails, whichever operation meets it."""
    files, layers = tiny_files(case), LayerRange(0, 2)
    settings = {**SETTINGS, "kv_dtype": kv_dtype}
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
