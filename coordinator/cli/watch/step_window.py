"""What the stages did in the last few seconds, from the records of single steps. Pure."""

from collections import deque
from dataclasses import dataclass

from stagecoach.client import StepRecord

_NS_PER_MS = 1e6
_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """One stage over the window; the times are means of a step, in milliseconds."""

    busy: float
    """Share [0, 1] of the time in which it computed."""
    queue_ms: float
    compute_ms: float
    serialize_ms: float
    wire_ms: float


class StepWindow:
    """The steps of the last few seconds.

    Args:
        span_s: How many.
        started_s: When the watch began, on the caller's clock.
    """

    def __init__(self, span_s: float, started_s: float) -> None:
        self._span_s = span_s
        self._started_s = started_s
        self._steps: deque[tuple[float, StepRecord]] = deque()

    def add(self, record: StepRecord, now_s: float) -> None:
        """Takes in a step that arrived now."""
        self._steps.append((now_s, record))
        self._forget(now_s)

    def stages(self, now_s: float) -> tuple[StageTimes, ...]:
        """Sums up each stage, in order; empty when there was no step."""
        self._forget(now_s)
        records = [record for _, record in self._steps]
        if not records:
            return ()
        span_ns = max(min(self._span_s, now_s - self._started_s), 1e-3) * _NS_PER_S
        num_stages = min(len(record.stages) for record in records)
        return tuple(self._stage(index, records, span_ns) for index in range(num_stages))

    def _stage(self, index: int, records: list[StepRecord], span_ns: float) -> StageTimes:
        visits = [record.stages[index] for record in records]
        compute_ns = sum(visit.compute_ns for visit in visits)
        ns_per_unit = _NS_PER_MS * len(visits)
        return StageTimes(
            busy=min(compute_ns / span_ns, 1.0),
            queue_ms=sum(visit.queue_ns for visit in visits) / ns_per_unit,
            compute_ms=compute_ns / ns_per_unit,
            serialize_ms=sum(visit.serialize_ns for visit in visits) / ns_per_unit,
            wire_ms=sum(visit.wire_ns for visit in visits) / ns_per_unit,
        )

    def _forget(self, now_s: float) -> None:
        while self._steps and self._steps[0][0] < now_s - self._span_s:
            self._steps.popleft()
