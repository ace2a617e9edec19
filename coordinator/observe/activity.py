"""How busy the pipeline was over the last seconds, and where the time of a step went.

Fed with one sample a step; keeps sums by the whole second, so that neither memory nor the cost of
an answer grows with the number of steps. No clock, no I/O.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coordinator.core.step_record import StageVisit, StepRecord

_NS_PER_S = 1_000_000_000


class StageSample(NamedTuple):
    """Where a micro-batch's time at one stage went, in nanoseconds."""

    compute_ns: int
    queue_ns: int
    serialize_ns: int
    wire_ns: int


class StepSample(NamedTuple):
    """What one step did, in nanoseconds of one monotonic clock."""

    ended_ns: int
    """When its tokens were on their way to the clients."""
    num_prefill_tokens: int
    num_decode_tokens: int
    schedule_ns: int
    sample_ns: int
    emit_ns: int
    stages: tuple[StageSample, ...]
    """One a stage, in order."""

    @classmethod
    def of(cls, record: StepRecord) -> "StepSample":
        """Takes from the record of a step what counts here."""
        instants = record.instants
        return cls(
            ended_ns=instants.emitted_ns,
            num_prefill_tokens=record.num_prefill_tokens,
            num_decode_tokens=record.num_decode_tokens,
            schedule_ns=instants.scheduled_ns - instants.started_ns,
            sample_ns=instants.sampled_ns - instants.returned_ns,
            emit_ns=instants.emitted_ns - instants.emitting_ns,
            stages=tuple(map(_stage_sample, record.stages)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageActivity:
    """One stage over the window; durations are means over its steps, in nanoseconds."""

    busy_share: float
    """Share of the window that it computed, from 0 to 1."""
    compute_ns: float
    queue_ns: float
    serialize_ns: float
    wire_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """The pipeline over the window; durations are means over its steps, in nanoseconds.

    A step counts once it has ended, so one that is still under way is not in it.
    """

    window_s: float
    """Length of the window; less than usual soon after the start."""
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    schedule_ns: float
    sample_ns: float
    emit_ns: float
    stages: tuple[StageActivity, ...]
    """In pipeline order; empty while no step has ended in the window."""


class _Second:
    """The sums of all steps that ended in one second."""

    __slots__ = ("num_steps", "second", "stages", "sums")

    def __init__(self, second: int) -> None:
        self.second = second
        self.num_steps = 0
        self.sums: Sequence[int] = (0, 0, 0, 0, 0)
        self.stages: Sequence[Sequence[int]] = ()

    def add(self, step: StepSample) -> None:
        self.num_steps += 1
        self.sums = _added(self.sums, step[1:6])
        self.stages = _stages_added(self.stages, step.stages)


class ActivityWindow:
    """Sums steps up over a window of whole seconds that ends now.

    Args:
        origin_ns: When watching began; the window never reaches back before it.
        window_s: Whole seconds before the current one.
    """

    def __init__(self, origin_ns: int, window_s: int = 5) -> None:
        self._origin_ns = origin_ns
        self._window_s = window_s
        self._seconds: deque[_Second] = deque()

    def add(self, step: StepSample) -> None:
        """Counts a step. Steps come in the order in which they ended."""
        second = step.ended_ns // _NS_PER_S
        if not self._seconds or self._seconds[-1].second != second:
            self._seconds.append(_Second(second))
            self._drop_before(second - self._window_s)
        self._seconds[-1].add(step)

    def activity(self, now_ns: int) -> Activity:
        """Sums the window up.

        Args:
            now_ns: Its end, by the clock of the samples.
        """
        first_second = now_ns // _NS_PER_S - self._window_s
        self._drop_before(first_second)
        window_ns = max(1, now_ns - max(self._origin_ns, first_second * _NS_PER_S))
        sums: Sequence[int] = (0, 0, 0, 0, 0)
        stages: Sequence[Sequence[int]] = ()
        for second in self._seconds:
            sums = _added(sums, second.sums)
            stages = _stages_added(stages, second.stages)
        num_steps = sum(second.num_steps for second in self._seconds)
        per_step = 1 / max(1, num_steps)
        num_prefill_tokens, num_decode_tokens, schedule_ns, sample_ns, emit_ns = sums
        return Activity(
            window_s=window_ns / _NS_PER_S,
            num_steps=num_steps,
            num_prefill_tokens=num_prefill_tokens,
            num_decode_tokens=num_decode_tokens,
            schedule_ns=schedule_ns * per_step,
            sample_ns=sample_ns * per_step,
            emit_ns=emit_ns * per_step,
            stages=tuple(
                StageActivity(
                    busy_share=min(1.0, stage.compute_ns / window_ns),
                    compute_ns=stage.compute_ns * per_step,
                    queue_ns=stage.queue_ns * per_step,
                    serialize_ns=stage.serialize_ns * per_step,
                    wire_ns=stage.wire_ns * per_step,
                )
                for stage in (StageSample(*totals) for totals in stages)
            ),
        )

    def _drop_before(self, second: int) -> None:
        while self._seconds and self._seconds[0].second < second:
            self._seconds.popleft()


def activity_json(activity: Activity) -> dict[str, object]:
    """Writes it as plain data, with durations in milliseconds."""
    return {
        "window_s": round(activity.window_s, 3),
        "steps": activity.num_steps,
        "prefill_tokens": activity.num_prefill_tokens,
        "decode_tokens": activity.num_decode_tokens,
        "schedule_ms": _ms(activity.schedule_ns),
        "sample_ms": _ms(activity.sample_ns),
        "emit_ms": _ms(activity.emit_ns),
        "stages": [
            {
                "busy_share": round(stage.busy_share, 4),
                "compute_ms": _ms(stage.compute_ns),
                "queue_ms": _ms(stage.queue_ns),
                "serialize_ms": _ms(stage.serialize_ns),
                "wire_ms": _ms(stage.wire_ns),
            }
            for stage in activity.stages
        ],
    }


def _ms(duration_ns: float) -> float:
    return round(duration_ns / 1e6, 4)


def _stage_sample(visit: StageVisit) -> StageSample:
    inside_ns = visit.queue_ns + visit.compute_ns + visit.serialize_ns
    return StageSample(
        compute_ns=visit.compute_ns,
        queue_ns=visit.queue_ns,
        serialize_ns=visit.serialize_ns,
        wire_ns=max(0, visit.span.arrived_ns - visit.span.sent_ns - inside_ns),
    )


def _added(left: Iterable[int], right: Iterable[int]) -> Sequence[int]:
    return [one + other for one, other in zip(left, right, strict=True)]


def _stages_added(
    left: Sequence[Iterable[int]], right: Sequence[Iterable[int]]
) -> Sequence[Sequence[int]]:
    """Adds stage by stage; a side without stages has no steps."""
    if not left or not right:
        return [list(stage) for stage in left or right]
    return [_added(*pair) for pair in zip(left, right, strict=True)]
