"""How busy the pipeline was over the last seconds, and where the time of a step went.

Fed with the record of each step; keeps sums by the whole second, so that neither memory nor the
cost of an answer grows with the number of steps. No clock, no I/O.
"""

from collections import deque
from dataclasses import dataclass

from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StepRecord

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class StageActivity:
    """One stage over the window."""

    busy_share: float
    """Share of the window that it computed, from 0 to 1."""
    mean: StageTimings[float]
    """Mean times of a step at the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """The pipeline over the window; durations are means over its steps, in nanoseconds.

    The coordinator's part of a step is divided as `StepInstants` says. A step counts once it has
    ended, so one that is still under way is not in it.
    """

    window_s: float
    """Length of the window; less than usual soon after the start."""
    num_steps: int
    num_prefill_tokens: int
    num_decode_tokens: int
    schedule_ns: float
    sample_ns: float
    detokenize_ns: float
    stages: tuple[StageActivity, ...]
    """In pipeline order; empty while no step has ended in the window."""


@dataclass(slots=True)
class _Sums:
    """Sums over steps; those that ended in one second, or in all seconds of the window."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    schedule_ns: int = 0
    sample_ns: int = 0
    detokenize_ns: int = 0
    stages: tuple[StageTimings[int], ...] = ()

    def add_step(self, record: StepRecord) -> None:
        self.num_steps += 1
        self.num_prefill_tokens += record.num_prefill_tokens
        self.num_decode_tokens += record.num_decode_tokens
        self.schedule_ns += record.schedule_ns
        self.sample_ns += record.sample_ns
        self.detokenize_ns += record.detokenize_ns
        self._add_stages(tuple(visit.timings for visit in record.stages))

    def add(self, other: "_Sums") -> None:
        self.num_steps += other.num_steps
        self.num_prefill_tokens += other.num_prefill_tokens
        self.num_decode_tokens += other.num_decode_tokens
        self.schedule_ns += other.schedule_ns
        self.sample_ns += other.sample_ns
        self.detokenize_ns += other.detokenize_ns
        self._add_stages(other.stages)

    def _add_stages(self, stages: tuple[StageTimings[int], ...]) -> None:
        if self.stages:
            pairs = zip(self.stages, stages, strict=True)
            self.stages = tuple(own + other for own, other in pairs)
        else:
            self.stages = stages


class StepWindow:
    """Sums steps up over a window of whole seconds that ends now.

    All times are nanoseconds of one clock, which the caller chooses.

    Args:
        origin_ns: When watching began; the window never reaches back before it.
        window_s: Whole seconds before the current one.
    """

    def __init__(self, origin_ns: int, window_s: int) -> None:
        self._origin_ns = origin_ns
        self._window_s = window_s
        self._seconds: deque[tuple[int, _Sums]] = deque()

    def add(self, record: StepRecord, at_ns: int) -> None:
        """Counts a step.

        Args:
            record: What it did. Only the lengths of its times count, so they may be of another
                clock.
            at_ns: When it ended, or was heard of; not before the step counted last.
        """
        second = at_ns // _NS_PER_S
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, _Sums()))
            self._drop_before(second - self._window_s)
        self._seconds[-1][1].add_step(record)

    def activity(self, now_ns: int) -> Activity:
        """Sums the window up.

        Args:
            now_ns: End of the window.
        """
        first_second = now_ns // _NS_PER_S - self._window_s
        self._drop_before(first_second)
        window_ns = max(1, now_ns - max(self._origin_ns, first_second * _NS_PER_S))
        sums = _Sums()
        for _, second in self._seconds:
            sums.add(second)
        num_steps = max(1, sums.num_steps)
        return Activity(
            window_s=window_ns / _NS_PER_S,
            num_steps=sums.num_steps,
            num_prefill_tokens=sums.num_prefill_tokens,
            num_decode_tokens=sums.num_decode_tokens,
            schedule_ns=sums.schedule_ns / num_steps,
            sample_ns=sums.sample_ns / num_steps,
            detokenize_ns=sums.detokenize_ns / num_steps,
            stages=tuple(
                StageActivity(
                    busy_share=min(1.0, stage.compute_ns / window_ns), mean=stage / num_steps
                )
                for stage in sums.stages
            ),
        )

    def _drop_before(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] < second:
            self._seconds.popleft()


def activity_json(activity: Activity) -> dict[str, object]:
    """Writes it as plain data, with durations in milliseconds; `emit_ms` is the detokenization."""
    return {
        "window_s": round(activity.window_s, 3),
        "steps": activity.num_steps,
        "prefill_tokens": activity.num_prefill_tokens,
        "decode_tokens": activity.num_decode_tokens,
        "schedule_ms": _ms(activity.schedule_ns),
        "sample_ms": _ms(activity.sample_ns),
        "emit_ms": _ms(activity.detokenize_ns),
        "stages": [
            {
                "busy_share": round(stage.busy_share, 4),
                "compute_ms": _ms(stage.mean.compute_ns),
                "queue_ms": _ms(stage.mean.queue_ns),
                "serialize_ms": _ms(stage.mean.serialize_ns),
                "wire_ms": _ms(stage.mean.wire_ns),
            }
            for stage in activity.stages
        ],
    }


def _ms(duration_ns: float) -> float:
    return round(duration_ns / _NS_PER_MS, 4)
