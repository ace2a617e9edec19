"""The four parts of the time at a stage add up, are summed part by part, and have means."""

from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.request_timings import RequestTimings
from stagecoach.contract.stage_timings import NO_TIME, StageTimings
from stagecoach.contract.step_record import StageVisit

PARTS = ("queue_ns", "compute_ns", "serialize_ns", "wire_ns")

ns = st.integers(0, 2**40)
timings = st.builds(StageTimings, ns, ns, ns, ns)


@given(st.lists(timings, max_size=5))
def test_a_sum_is_taken_part_by_part(several: list[StageTimings[int]]) -> None:
    total = sum(several, NO_TIME)
    assert isinstance(total, StageTimings)
    for name in PARTS:
        assert getattr(total, name) == sum(getattr(one, name) for one in several)
    assert total.total_ns == sum(one.total_ns for one in several)


@given(timings, st.integers(1, 1000))
def test_a_mean_is_taken_part_by_part(total: StageTimings[int], count: int) -> None:
    mean = total / count
    assert isinstance(mean, StageTimings)
    for name in PARTS:
        assert getattr(mean, name) == getattr(total, name) / count


def test_more_serialization_leaves_the_other_parts_alone() -> None:
    assert StageTimings(1, 2, 3, 4).with_serialization(10) == StageTimings(1, 2, 13, 4)


@given(st.integers(0, 2**40), ns, ns, ns, ns)
def test_the_wire_is_what_the_stage_leaves_of_the_round_trip(
    sent_ns: int, queue_ns: int, compute_ns: int, serialize_ns: int, wire_ns: int
) -> None:
    inside = {"queue_ns": queue_ns, "compute_ns": compute_ns, "serialize_ns": serialize_ns}
    arrived_ns = sent_ns + queue_ns + compute_ns + serialize_ns + wire_ns
    visit = StageVisit.of(sent_ns, arrived_ns, **inside)
    assert visit.timings == StageTimings(queue_ns, compute_ns, serialize_ns, wire_ns)
    assert visit.timings.total_ns == visit.arrived_ns - visit.sent_ns
    assert (visit.queue_ns, visit.compute_ns) == (queue_ns, compute_ns)
    assert (visit.serialize_ns, visit.wire_ns) == (serialize_ns, wire_ns)


def test_the_wire_is_never_less_than_nothing() -> None:
    visit = StageVisit.of(0, 10, queue_ns=5, compute_ns=5, serialize_ns=5)
    assert visit.timings == StageTimings(5, 5, 5, 0)


def test_other_is_what_nothing_accounts_for() -> None:
    timings = RequestTimings(
        queue_ns=1,
        time_to_first_token_ns=2,
        total_ns=1000,
        num_steps=3,
        schedule_ns=10,
        sample_ns=20,
        detokenize_ns=30,
        step_ns=500,
        stages=(StageTimings(1, 2, 3, 4), StageTimings(10, 20, 30, 40)),
    )
    assert timings.other_ns == 500 - (10 + 100) - 10 - 20 - 30
