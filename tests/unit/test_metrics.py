"""What observers are told, and what the coordinator's metrics make of it."""

import random

import pytest
from prometheus_client import CollectorRegistry

from coordinator.core.observation import EngineFigures, RequestEnd, StageServerFigures, StepSummary
from coordinator.core.request import FinishReason
from coordinator.observe.metrics import CoordinatorMetrics
from coordinator.observe.metrics.bubbles import NS_PER_S, WINDOW_MARKS, BubbleMeter
from coordinator.observe.metrics.recorder import MetricsRecorder
from coordinator.observe.observer import Observers
from coordinator.observe.request_log import RequestLog
from stagecoach.contract.errors import (
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.telemetry.histogram import Histogram
from tests.stage_infos import create_info

MS = 1_000_000


def num_values(histogram: Histogram) -> int:
    return sum(histogram._counts)


def request_end(reason: FinishReason = FinishReason.LENGTH, **changes: object) -> RequestEnd:
    values: dict[str, object] = {
        "request_id": "r-1",
        "reason": reason,
        "error": InternalError("broken") if reason is FinishReason.ERROR else None,
        "num_prompt_tokens": 5,
        "num_completion_tokens": 3,
        "num_cached_tokens": 0,
        "num_steps": 3,
        "num_preemptions": 0,
        "num_replays": 0,
        "arrival_ns": 0,
        "first_step_ns": 2 * MS,
        "first_token_ns": 20 * MS,
        "end_ns": 60 * MS,
    }
    return RequestEnd(**(values | changes))  # type: ignore[arg-type]


def step_summary(num_stages: int = 2, **changes: object) -> StepSummary:
    step = StepSummary(
        num_prefill_tokens=0,
        num_decode_tokens=2,
        num_sent_tokens=2,
        inter_token_ns={20 * MS: 2},
        stages=(StageTimings(1 * MS, 8 * MS, 2 * MS, 3 * MS),) * num_stages,
    )
    return step._replace(**changes)  # type: ignore[arg-type]


class Failing(RequestLog):
    """An observer with a bug."""

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        raise ZeroDivisionError(request_id)


def test_an_observer_that_fails_is_dropped_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = MetricsRecorder()
    observers = Observers([Failing(), recorder])
    observers.request_accepted("r-1", 5)
    observers.request_accepted("r-2", 5)
    assert recorder.num_accepted == 2
    assert caplog.text.count("an observer failed and is dropped") == 1
    assert "ZeroDivisionError" in caplog.text


def test_requests_are_counted_by_their_ends() -> None:
    recorder = MetricsRecorder()
    ends = [FinishReason.STOP, FinishReason.STOP, FinishReason.ABORT, FinishReason.ERROR]
    for reason in ends:
        recorder.request_accepted("r", 5)
        recorder.request_ended(request_end(reason))
    assert recorder.ends == {"stop": 2, "length": 0, "abort": 1, "error": 1}
    assert recorder.errors["INTERNAL"] == 1
    assert recorder.num_prompt_tokens == 20
    assert num_values(recorder.whole_request) == 4
    assert recorder.time_to_first_token.total == pytest.approx(0.08)


def test_a_request_that_never_ran_has_no_time_to_its_first_token() -> None:
    recorder = MetricsRecorder()
    recorder.request_accepted("r", 5)
    recorder.request_ended(request_end(FinishReason.ABORT, first_step_ns=None, first_token_ns=None))
    assert num_values(recorder.whole_request) == 1
    assert num_values(recorder.queue_time) == num_values(recorder.time_to_first_token) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFullError("full"), "QUEUE_FULL"),
        (InvalidArgumentError("bad", field="prompt"), "INVALID_ARGUMENT"),
    ],
)
def test_refusals_are_counted_by_their_error(error: StagecoachError, reason: str) -> None:
    recorder = MetricsRecorder()
    recorder.request_refused(error)
    assert recorder.refusals[reason] == 1
    assert sum(recorder.refusals.values()) == 1


def test_a_step_counts_each_token_and_each_part_of_each_stage() -> None:
    recorder = MetricsRecorder()
    recorder.request_accepted("r", 5)
    recorder.step_ended(step_summary(num_prefill_tokens=6))
    recorder.step_ended(step_summary())
    assert (recorder.num_prefill_tokens, recorder.num_decode_tokens) == (6, 4)
    assert recorder.num_generated_tokens == 4
    assert (num_values(recorder.inter_token), recorder.inter_token.total) == (4, 0.08)
    for times in recorder.stages:
        parts = (times.queue, times.compute, times.serialize, times.wire)
        assert [part.total for part in parts] == pytest.approx([0.002, 0.016, 0.004, 0.006])


def test_a_micro_batch_that_only_frees_slots_is_left_out() -> None:
    recorder = MetricsRecorder()
    recorder.step_ended(step_summary(num_decode_tokens=0, num_sent_tokens=0, inter_token_ns={}))
    assert recorder.num_steps == 0
    assert recorder.stages == []


def test_a_stage_that_computes_half_of_the_time_has_a_bubble_of_half() -> None:
    meter = BubbleMeter()
    assert meter.ratios(0) == ()
    meter.begin(0)
    for step in range(1, 11):
        meter.add([50 * MS, 25 * MS], now_ns=step * 100 * MS)
    assert meter.ratios(NS_PER_S) == pytest.approx((0.5, 0.75))


def test_time_without_work_is_no_bubble() -> None:
    meter = BubbleMeter()
    meter.begin(0)
    meter.add([80 * MS], now_ns=100 * MS)
    meter.end(100 * MS)
    assert meter.ratios(1000 * NS_PER_S) == pytest.approx((0.2,))
    assert meter.working_ns(1000 * NS_PER_S) == 100 * MS
    meter.begin(1000 * NS_PER_S)
    assert meter.ratios(1000 * NS_PER_S + 100 * MS) == pytest.approx((0.6,))


def test_an_outage_is_a_bubble() -> None:
    meter = BubbleMeter()
    meter.begin(0)
    meter.add([100 * MS], now_ns=100 * MS)
    assert meter.ratios(400 * MS) == pytest.approx((0.75,))


def test_a_step_that_ends_after_its_request_makes_no_negative_bubble() -> None:
    meter = BubbleMeter()
    meter.begin(0)
    meter.end(10 * MS)
    meter.add([30 * MS], now_ns=40 * MS)
    assert meter.ratios(50 * MS) == (0.0,)


@pytest.mark.parametrize("seed", range(3))
def test_ratios_are_those_of_the_last_ten_seconds_of_work(seed: int) -> None:
    """The slow twin keeps every step."""
    rng = random.Random(seed)
    meter = BubbleMeter()
    now_ns = working_ns = compute_ns = 0
    history = [(0, 0)]  # work and compute at each mark
    for _ in range(20):
        now_ns += rng.randrange(5 * NS_PER_S)  # idle
        meter.begin(now_ns)
        for _ in range(rng.randrange(1, 40)):
            duration_ns = rng.randrange(1, 200 * MS)
            busy_ns = rng.randrange(duration_ns)
            now_ns, working_ns = now_ns + duration_ns, working_ns + duration_ns
            compute_ns += busy_ns
            meter.add([busy_ns], now_ns)
            if working_ns - history[-1][0] >= NS_PER_S:
                history.append((working_ns, compute_ns))
        meter.end(now_ns)
        worked_before_ns, computed_before_ns = history[-WINDOW_MARKS - 1 :][0]
        busy_share = (compute_ns - computed_before_ns) / (working_ns - worked_before_ns or 1)
        assert meter.ratios(now_ns) == pytest.approx((1 - busy_share,))
        assert meter.working_ns(now_ns) == working_ns


class IdleEngine:
    """Two stages, one of them lost."""

    def figures(self) -> EngineFigures:
        return EngineFigures(
            is_ready=False,
            num_running=3,
            num_waiting=2,
            num_micro_batches=1,
            num_kv_blocks=100,
            num_free_kv_blocks=60,
            num_cached_kv_blocks=20,
            num_prefix_query_tokens=50,
            num_prefix_hit_tokens=16,
            num_preemptions=4,
            num_replays=5,
            num_draft_tokens=12,
            num_accepted_draft_tokens=7,
            stages=(
                (
                    StageServerFigures(
                        "box1:1", create_info(LayerRange(0, 2), num_free_kv_blocks=60), True, 0
                    ),
                ),
                (
                    StageServerFigures(
                        "box2:1", create_info(LayerRange(2, 4), num_free_kv_blocks=60), False, 1
                    ),
                ),
            ),
        )


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_the_state_of_the_engine_is_exported() -> None:
    metrics = CoordinatorMetrics(num_lost_log_lines=lambda: 7)
    metrics.add("other", model="org/other")
    demo = metrics.add("demo", model="/models/demo")
    assert value(metrics.registry, "stagecoach_ready", model="demo") == 0
    assert value(metrics.registry, "stagecoach_num_requests_running", model="demo") is None
    demo.serve(IdleEngine())
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("stagecoach_ready", ()): 0,
        ("stagecoach_model_info", (("model_name", "/models/demo"),)): 1,
        ("stagecoach_num_requests_running", ()): 3,
        ("stagecoach_num_requests_waiting", ()): 2,
        ("stagecoach_micro_batches_in_flight", ()): 1,
        ("stagecoach_kv_cache_usage_perc", ()): 0.4,
        ("stagecoach_kv_blocks", (("state", "used"),)): 40,
        ("stagecoach_kv_blocks", (("state", "cached"),)): 20,
        ("stagecoach_kv_blocks", (("state", "empty"),)): 40,
        ("stagecoach_prefix_cache_queries_total", ()): 50,
        ("stagecoach_prefix_cache_hits_total", ()): 16,
        ("stagecoach_draft_tokens_total", ()): 12,
        ("stagecoach_accepted_draft_tokens_total", ()): 7,
        ("stagecoach_num_preemptions_total", ()): 4,
        ("stagecoach_replays_total", ()): 5,
        ("stagecoach_stage_losses_total", (("stage", "1"),)): 1,
        ("stagecoach_stage_up", (("stage", "0"),)): 1,
        ("stagecoach_stage_up", (("stage", "1"),)): 0,
    }
    for (name, labels), wanted in expected.items():
        assert value(metrics.registry, name, model="demo", **dict(labels)) == wanted, name
    assert value(metrics.registry, "stagecoach_log_lines_lost_total") == 7
    assert value(metrics.registry, "stagecoach_ready", model="other") == 0
    assert value(metrics.registry, "stagecoach_num_requests_running", model="other") is None
    names = [family.name for family in metrics.registry.collect()]
    assert len(names) == len(set(names)), "a family is exported once, with all models"


def test_two_coordinators_in_one_process_count_apart() -> None:
    one, other = CoordinatorMetrics(), CoordinatorMetrics()
    counted, _ = (metrics.add("m", model="m") for metrics in (one, other))
    counted.recorder.request_accepted("r", 5)
    name = "stagecoach_requests_accepted_total"
    assert [value(each.registry, name, model="m") for each in (one, other)] == [1, 0]
