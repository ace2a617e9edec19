"""Sums of the times of steps, taken as vectors, equal those taken part by part."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.time_vector import TimeVector
from stagecoach.contract.request_timings import StepTotals
from stagecoach.contract.stage_timings import NO_TIME, StageTimings

NUM_STAGES = 2
OWN = ("schedule_ns", "sample_ns", "detokenize_ns", "step_ns")

ns = st.integers(0, 2**40)
steps = st.builds(
    StepTotals,
    num_steps=st.just(1),
    **dict.fromkeys(OWN, ns),
    stages=st.tuples(*[st.builds(StageTimings, ns, ns, ns, ns)] * NUM_STAGES),
)


@given(st.lists(steps, max_size=5))
def test_sums_equal_those_taken_part_by_part(several: list[StepTotals]) -> None:
    sums = TimeVector.zeros(NUM_STAGES)
    for step in several:
        own = {name: getattr(step, name) for name in OWN}
        sums.add(TimeVector.of_step(**own, stages=step.stages))
    assert sums.totals(len(several)) == StepTotals(
        num_steps=len(several),
        **{name: sum(getattr(step, name) for step in several) for name in OWN},
        stages=tuple(
            sum((step.stages[index] for step in several), NO_TIME) for index in range(NUM_STAGES)
        ),
    )


def test_totals_that_were_read_stay_when_more_is_added() -> None:
    stages = (StageTimings(1, 2, 3, 4), StageTimings(5, 6, 7, 8))
    own = dict.fromkeys(OWN, 1)
    sums = TimeVector.of_step(**own, stages=stages)
    before = sums.totals(1)
    sums.add(TimeVector.of_step(**own, stages=stages))
    assert before.stages == stages
    assert sums.totals(2).stages == tuple(stage + stage for stage in stages)
