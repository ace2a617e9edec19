"""Cuts the records of steps into the phases that a timeline shows.

Each phase belongs to a lane: the coordinator, or one stage. Clocks of different boxes are not
compared: a stage tells durations, and where they lie between the sending and the answer is not
known. They are drawn in the order in which they happen, with half of the wire's time before them
and half after, and half of the stage's serialization on either side of queue and compute.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from stagecoach.client import StageVisit, StepRecord


class Phase(IntEnum):
    """What a micro-batch is at; where phases of a lane overlap, the lower one is shown."""

    COMPUTE = 0
    SCHEDULE = 1
    SAMPLE = 2
    DETOKENIZE = 3
    """Deciding which tokens are the last; then, beside the next micro-batch, text and sending."""
    SERIALIZE = 4
    QUEUE = 5
    WIRE = 6
    RELAY = 7
    """Time between the answer of one stage and the request to the next, in the coordinator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpan:
    """One phase of one micro-batch, in nanoseconds since the origin of the watch."""

    phase: Phase
    stage: int | None
    """Index of the stage; None for the coordinator."""
    start_ns: int
    end_ns: int
    record: StepRecord

    @property
    def duration_ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns


def phases(record: StepRecord) -> Iterator[PhaseSpan]:
    """All phases of one micro-batch that took time, in order, one right after the other.

    Between the decision which tokens are the last and their sending lies a gap, in which the next
    micro-batch is scheduled.
    """
    yield from _span(record, Phase.SCHEDULE, None, record.started_ns, record.scheduled_ns)
    left_ns = record.scheduled_ns
    for index, visit in enumerate(record.stages):
        yield from _span(record, Phase.RELAY, None, left_ns, visit.sent_ns)
        yield from _visit(record, index, visit)
        left_ns = visit.arrived_ns
    yield from _span(record, Phase.RELAY, None, left_ns, record.sampling_ns)
    yield from _span(record, Phase.SAMPLE, None, record.sampling_ns, record.sampled_ns)
    yield from _span(record, Phase.DETOKENIZE, None, record.sampled_ns, record.decided_ns)
    yield from _span(record, Phase.DETOKENIZE, None, record.emitting_ns, record.emitted_ns)


def _visit(record: StepRecord, index: int, visit: StageVisit) -> Iterator[PhaseSpan]:
    wire_in_ns = visit.wire_ns // 2
    read_ns = visit.serialize_ns // 2
    at_ns = visit.sent_ns
    for phase, duration_ns in (
        (Phase.WIRE, wire_in_ns),
        (Phase.SERIALIZE, read_ns),
        (Phase.QUEUE, visit.queue_ns),
        (Phase.COMPUTE, visit.compute_ns),
        (Phase.SERIALIZE, visit.serialize_ns - read_ns),
        (Phase.WIRE, visit.wire_ns - wire_in_ns),
    ):
        yield from _span(record, phase, index, at_ns, at_ns + duration_ns)
        at_ns += duration_ns


def _span(
    record: StepRecord, phase: Phase, stage: int | None, start_ns: int, end_ns: int
) -> Iterator[PhaseSpan]:
    if end_ns > start_ns:
        yield PhaseSpan(phase=phase, stage=stage, start_ns=start_ns, end_ns=end_ns, record=record)


def without_overlap(spans: Iterable[PhaseSpan]) -> Iterator[tuple[PhaseSpan, int, int]]:
    """Lays the phases of one lane out in one row.

    With several micro-batches in flight the wire and the queue of one are hidden behind the compute
    of another: of phases that overlap the lowest is shown, the earlier one where they are equal,
    and of the others what sticks out.

    Yields:
        A phase, and the start and end of a piece of it that is shown, in nanoseconds.
    """
    taken: list[tuple[int, int]] = []  # disjoint, in order
    for span in sorted(spans, key=lambda span: (span.phase, span.start_ns)):
        at = max(0, bisect_left(taken, (span.start_ns, 0)) - 1)
        start_ns = span.start_ns
        gaps = []
        while start_ns < span.end_ns:
            while at < len(taken) and taken[at][1] <= start_ns:
                at += 1
            before_ns = taken[at][0] if at < len(taken) else span.end_ns
            if before_ns > start_ns:
                gaps.append((start_ns, min(before_ns, span.end_ns)))
            start_ns = taken[at][1] if at < len(taken) else span.end_ns
        for gap in gaps:
            insort(taken, gap)
            yield span, *gap
