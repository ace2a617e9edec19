"""The window of activity equals a plain sum over the steps that ended in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.observe.step_window import StepWindow, activity_json
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StageVisit, StepRecord

NS_PER_S = 1_000_000_000
WINDOW_S = 5

durations = st.integers(0, 40_000_000)
stage_visits = st.builds(
    StageVisit.of,
    st.just(0),
    st.integers(160_000_000, 200_000_000),
    queue_ns=durations,
    compute_ns=durations,
    serialize_ns=durations,
)


def create_record(
    emitted_ns: int,
    *stages: StageVisit,
    num_prefill_tokens: int = 0,
    num_decode_tokens: int = 4,
    schedule_ns: int = 0,
    sample_ns: int = 0,
    decide_ns: int = 0,
    emit_ns: int = 0,
) -> StepRecord:
    """A step that ended then, one part right after the other."""
    emitting_ns = emitted_ns - emit_ns
    sampled_ns = emitting_ns - decide_ns
    sampling_ns = sampled_ns - sample_ns
    return StepRecord(
        micro_batch_id=1,
        num_sequences=1,
        num_prefill_tokens=num_prefill_tokens,
        num_decode_tokens=num_decode_tokens,
        started_ns=sampling_ns - schedule_ns,
        scheduled_ns=sampling_ns,
        stages=stages,
        sampling_ns=sampling_ns,
        sampled_ns=sampled_ns,
        decided_ns=emitting_ns,
        emitting_ns=emitting_ns,
        emitted_ns=emitted_ns,
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[StepRecord], int]:
    """Steps of two stages in the order of their ends, and a time that is not before them."""
    ends = sorted(draw(st.lists(st.integers(3 * NS_PER_S, 20 * NS_PER_S), max_size=30)))
    steps = [
        create_record(
            end_ns,
            draw(stage_visits),
            draw(stage_visits),
            num_prefill_tokens=draw(st.integers(0, 64)),
            num_decode_tokens=draw(st.integers(0, 64)),
            schedule_ns=draw(durations),
            sample_ns=draw(durations),
            decide_ns=draw(durations),
            emit_ns=draw(durations),
        )
        for end_ns in ends
    ]
    last_ns = ends[-1] if ends else 3 * NS_PER_S
    return steps, last_ns + draw(st.integers(0, 8 * NS_PER_S))


@given(histories())
def test_activity_equals_a_sum_over_the_steps_of_the_window(
    history: tuple[list[StepRecord], int],
) -> None:
    steps, now_ns = history
    origin_ns = 3 * NS_PER_S
    window = StepWindow(origin_ns, WINDOW_S)
    for step in steps:
        window.add(step, step.emitted_ns)
    activity = window.activity(now_ns)

    begin_ns = (now_ns // NS_PER_S - WINDOW_S) * NS_PER_S
    inside = [step for step in steps if step.emitted_ns >= begin_ns]
    window_ns = max(1, now_ns - max(begin_ns, origin_ns))
    assert activity.window_s == window_ns / NS_PER_S
    assert activity.num_steps == len(inside)
    assert activity.num_prefill_tokens == sum(step.num_prefill_tokens for step in inside)
    assert activity.num_decode_tokens == sum(step.num_decode_tokens for step in inside)
    assert len(activity.stages) == (2 if inside else 0)
    if inside:
        assert activity.sample_ns == pytest.approx(
            sum(step.sampled_ns - step.sampling_ns for step in inside) / len(inside)
        )
        assert activity.schedule_ns == pytest.approx(
            sum(step.scheduled_ns - step.started_ns for step in inside) / len(inside)
        )
        decided_ns = sum(step.decided_ns - step.sampled_ns for step in inside)
        emitted_ns = sum(step.emitted_ns - step.emitting_ns for step in inside)
        assert activity.detokenize_ns == pytest.approx((decided_ns + emitted_ns) / len(inside))
    for index, stage in enumerate(activity.stages):
        visits = [step.stages[index] for step in inside]
        computed_ns = sum(visit.compute_ns for visit in visits)
        assert stage.busy_share == pytest.approx(min(1, computed_ns / window_ns))
        assert stage.mean.queue_ns == pytest.approx(
            sum(visit.queue_ns for visit in visits) / len(visits)
        )
        assert stage.mean.wire_ns == pytest.approx(
            sum(visit.wire_ns for visit in visits) / len(visits)
        )


def test_a_stage_that_computes_half_of_the_time_is_half_busy() -> None:
    window = StepWindow(0, WINDOW_S)
    visit = StageVisit(0, 5_000_000, StageTimings(0, 5_000_000, 0, 0))
    for index in range(999):
        end_ns = (index + 1) * NS_PER_S // 100
        window.add(create_record(end_ns, visit, schedule_ns=1_000_000), end_ns)
    shown = activity_json(window.activity(10 * NS_PER_S - 1))
    assert shown["window_s"] == 6.0
    assert shown["schedule_ms"] == 1.0
    assert shown["stages"] == [
        {"busy_share": 0.5, "compute_ms": 5.0, "queue_ms": 0.0, "serialize_ms": 0.0, "wire_ms": 0.0}
    ]


def test_nothing_runs_so_nothing_is_busy() -> None:
    activity = StepWindow(NS_PER_S, WINDOW_S).activity(NS_PER_S)
    assert (activity.num_steps, activity.stages) == (0, ())
