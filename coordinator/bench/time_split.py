"""Splits the time of a decoded token into its parts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Self

from coordinator.bench.decode import DecodedRequest
from stagecoach.client import StepTotals, Timings
from stagecoach.contract.stage_timings import NO_TIME

_NS_PER_MS = 1e6
_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """Time from one token of a request to its next, in milliseconds; the parts add up to it."""

    compute: float
    """The forward, all stages together."""
    wire: float
    """Round trips to the stages, less what the stages account for."""
    serialize: float
    """Reading and writing messages, on both ends."""
    queue: float
    """Waiting inside the stages."""
    schedule: float
    """Deciding what runs."""
    sample: float
    """Choosing tokens."""
    other: float
    """What no part explains: text, the event loop, waiting for other micro-batches, the stream to
    the client."""

    @property
    def total(self) -> float:
        """All parts together."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def overhead(self) -> float:
        """Everything but the compute."""
        return self.total - self.compute

    @classmethod
    def of(cls, batch: Sequence[DecodedRequest]) -> Self:
        """Splits the time of a token of requests that ran together.

        Takes the request that had its first token last: no other one was in prefill after that, so
        every step of it is decode. With several micro-batches in flight its parts are those of the
        micro-batches that it was in.

        Args:
            batch: Requests of at least two tokens each.
        """
        last = max(batch, key=lambda request: request.arrivals_s[0])
        num_steps = len(last.arrivals_s) - 1
        total_s = (last.arrivals_s[-1] - last.arrivals_s[0]) / num_steps
        parts = _decode_ns(last.timings)
        ms = {name: ns / num_steps / _NS_PER_MS for name, ns in parts.items()}
        return cls(**ms, other=total_s * _MS_PER_S - sum(ms.values()))

    @classmethod
    def median(cls, splits: Sequence[Self]) -> Self:
        """The median of each part, over several runs."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: median(getattr(split, name) for split in splits) for name in names})


def _decode_ns(timings: Timings) -> dict[str, int]:
    """Sums over the steps after the first token."""
    assert timings.prefill is not None, "a request that made tokens made a first one"
    whole, prefill = _sums_ns(timings), _sums_ns(timings.prefill)
    return {name: whole[name] - prefill[name] for name in whole}


def _sums_ns(totals: Timings | StepTotals) -> dict[str, int]:
    """Adds the stages up; one figure a part."""
    stages = sum(totals.stages, NO_TIME)
    return {
        "compute": stages.compute_ns,
        "wire": stages.wire_ns,
        "serialize": stages.serialize_ns,
        "queue": stages.queue_ns,
        "schedule": totals.schedule_ns,
        "sample": totals.sample_ns,
    }
