"""A row of the timeline shows at each instant what a slow, obvious rule says."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.timeline.phases import Phase, PhaseSpan, without_overlap
from stagecoach.client import StepRecord

RECORD = StepRecord(
    micro_batch_id=1,
    num_sequences=1,
    num_prefill_tokens=0,
    num_decode_tokens=1,
    started_ns=0,
    scheduled_ns=0,
    stages=(),
    sampling_ns=0,
    sampled_ns=0,
    decided_ns=0,
    emitting_ns=0,
    emitted_ns=0,
)


def create_span(phase: Phase, start_ns: int, duration_ns: int) -> PhaseSpan:
    return PhaseSpan(
        phase=phase, stage=0, start_ns=start_ns, end_ns=start_ns + duration_ns, record=RECORD
    )


spans = st.lists(
    st.builds(create_span, st.sampled_from(Phase), st.integers(0, 40), st.integers(1, 15)),
    max_size=12,
)


def shown(spans: list[PhaseSpan]) -> dict[int, tuple[Phase, int]]:
    """Phase and start of what is shown at each nanosecond: the lowest phase, then the earliest."""
    found: dict[int, tuple[Phase, int]] = {}
    for at in range(60):
        here = [(one.phase, one.start_ns) for one in spans if one.start_ns <= at < one.end_ns]
        if here:
            found[at] = min(here)
    return found


@given(spans)
def test_a_row_equals_its_slow_twin_and_its_pieces_are_disjoint(spans: list[PhaseSpan]) -> None:
    pieces = list(without_overlap(spans))
    found = {
        at: (span.phase, span.start_ns) for span, start, end in pieces for at in range(start, end)
    }
    assert found == shown(spans)
    assert sum(end - start for _, start, end in pieces) == len(found)
    assert all(span.start_ns <= start < end <= span.end_ns for span, start, end in pieces)
