"""Where the time of a micro-batch at one stage goes: four parts. Standard library only."""

from dataclasses import dataclass
from typing import Generic, TypeVar

_Ns = TypeVar("_Ns", int, float)


@dataclass(frozen=True, slots=True)
class StageTimings(Generic[_Ns]):
    """Durations at one stage, in nanoseconds: of one micro-batch, a sum over several, or a mean.

    They are whole numbers but in a mean.
    """

    queue_ns: _Ns
    """Waiting inside the stage."""
    compute_ns: _Ns
    """The forward."""
    serialize_ns: _Ns
    """Reading and writing messages."""
    wire_ns: _Ns
    """What is left of the round trip."""

    @property
    def total_ns(self) -> _Ns:
        """All four parts."""
        return self.queue_ns + self.compute_ns + self.serialize_ns + self.wire_ns

    def with_serialization(self, duration_ns: _Ns) -> "StageTimings[_Ns]":
        """These timings with more time spent on reading or writing messages."""
        serialize_ns = self.serialize_ns + duration_ns
        return StageTimings(self.queue_ns, self.compute_ns, serialize_ns, self.wire_ns)

    def __add__(self, other: "StageTimings[_Ns]") -> "StageTimings[_Ns]":
        return StageTimings(
            self.queue_ns + other.queue_ns,
            self.compute_ns + other.compute_ns,
            self.serialize_ns + other.serialize_ns,
            self.wire_ns + other.wire_ns,
        )

    def __truediv__(self, count: int) -> "StageTimings[float]":
        return StageTimings(
            self.queue_ns / count,
            self.compute_ns / count,
            self.serialize_ns / count,
            self.wire_ns / count,
        )


NO_TIME: StageTimings[int] = StageTimings(0, 0, 0, 0)
"""What a sum starts with."""
