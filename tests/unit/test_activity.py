"""The window of activity equals a plain sum over the steps that ended in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.observe.activity import ActivityWindow, StageSample, StepSample, activity_json

NS_PER_S = 1_000_000_000
WINDOW_S = 5

durations = st.integers(0, 40_000_000)
stage_samples = st.builds(
    StageSample, compute_ns=durations, queue_ns=durations, serialize_ns=durations, wire_ns=durations
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[StepSample], int]:
    """Steps of two stages in the order of their ends, and a time that is not before them."""
    ends = sorted(draw(st.lists(st.integers(3 * NS_PER_S, 20 * NS_PER_S), max_size=30)))
    steps = [
        StepSample(
            ended_ns=end_ns,
            num_prefill_tokens=draw(st.integers(0, 64)),
            num_decode_tokens=draw(st.integers(0, 64)),
            schedule_ns=draw(durations),
            sample_ns=draw(durations),
            emit_ns=draw(durations),
            stages=(draw(stage_samples), draw(stage_samples)),
        )
        for end_ns in ends
    ]
    last_ns = ends[-1] if ends else 3 * NS_PER_S
    return steps, last_ns + draw(st.integers(0, 8 * NS_PER_S))


@given(histories())
def test_activity_equals_a_sum_over_the_steps_of_the_window(
    history: tuple[list[StepSample], int],
) -> None:
    steps, now_ns = history
    origin_ns = 3 * NS_PER_S
    window = ActivityWindow(origin_ns, WINDOW_S)
    for step in steps:
        window.add(step)
    activity = window.activity(now_ns)

    begin_ns = (now_ns // NS_PER_S - WINDOW_S) * NS_PER_S
    inside = [step for step in steps if step.ended_ns >= begin_ns]
    window_ns = max(1, now_ns - max(begin_ns, origin_ns))
    assert activity.window_s == window_ns / NS_PER_S
    assert activity.num_steps == len(inside)
    assert activity.num_prefill_tokens == sum(step.num_prefill_tokens for step in inside)
    assert activity.num_decode_tokens == sum(step.num_decode_tokens for step in inside)
    assert len(activity.stages) == (2 if inside else 0)
    if inside:
        assert activity.sample_ns == pytest.approx(
            sum(step.sample_ns for step in inside) / len(inside)
        )
    for index, stage in enumerate(activity.stages):
        visits = [step.stages[index] for step in inside]
        computed_ns = sum(visit.compute_ns for visit in visits)
        assert stage.busy_share == pytest.approx(min(1, computed_ns / window_ns))
        assert stage.queue_ns == pytest.approx(
            sum(visit.queue_ns for visit in visits) / len(visits)
        )
        assert stage.wire_ns == pytest.approx(sum(visit.wire_ns for visit in visits) / len(visits))


def test_a_stage_that_computes_half_of_the_time_is_half_busy() -> None:
    window = ActivityWindow(0, WINDOW_S)
    for index in range(999):
        end_ns = (index + 1) * NS_PER_S // 100
        window.add(
            StepSample(
                ended_ns=end_ns,
                num_prefill_tokens=0,
                num_decode_tokens=4,
                schedule_ns=1_000_000,
                sample_ns=0,
                emit_ns=0,
                stages=(StageSample(compute_ns=5_000_000, queue_ns=0, serialize_ns=0, wire_ns=0),),
            )
        )
    shown = activity_json(window.activity(10 * NS_PER_S - 1))
    assert shown["window_s"] == 6.0
    assert shown["schedule_ms"] == 1.0
    assert shown["stages"] == [
        {"busy_share": 0.5, "compute_ms": 5.0, "queue_ms": 0.0, "serialize_ms": 0.0, "wire_ms": 0.0}
    ]


def test_nothing_runs_so_nothing_is_busy() -> None:
    activity = ActivityWindow(NS_PER_S).activity(NS_PER_S)
    assert (activity.num_steps, activity.stages) == (0, ())
