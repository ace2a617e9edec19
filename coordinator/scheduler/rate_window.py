"""Measures how fast work gets done at one depth, while the load stays as it is."""

from dataclasses import dataclass

from coordinator.scheduler.load import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A micro-batch that came back."""

    depth: int
    """Micro-batches in flight that were aimed at when it was scheduled."""
    load: Load
    """The load then."""
    work: float
    """What it got done, in decoded tokens."""
    landed_ns: int
    """When it came back, on a monotonic clock."""


class RateWindow:
    """Work per nanosecond over whole rounds; a round is as many micro-batches as are in flight.

    What was scheduled at another depth and the first round, in which the pipeline fills, do not
    count. A load that moves by more than an eighth begins the window anew.

    Args:
        depth: Micro-batches in flight.
        is_filling: False when the pipeline is at that depth already.
    """

    def __init__(self, depth: int, *, is_filling: bool = True) -> None:
        self.depth = depth
        self.has_moved = False
        """True once the load moved."""
        self._num_to_skip = depth if is_filling else 1
        self.elapsed_ns = 0
        self._work = 0.0
        self._num_landings = 0
        self._started_ns = 0
        self._low = self._high = 0

    @property
    def num_rounds(self) -> float:
        """Rounds that count."""
        return max(0, self._num_landings - self._num_to_skip) / self.depth

    @property
    def rate(self) -> float:
        """Work per nanosecond."""
        return self._work / max(1, self.elapsed_ns)

    def add(self, landing: Landing) -> None:
        """Counts a micro-batch, if it belongs here."""
        if landing.depth != self.depth:
            return
        num_sequences = landing.load.num_sequences
        low, high = min(self._low, num_sequences), max(self._high, num_sequences)
        if self._num_landings and (high - low) * 8 > high:
            self.has_moved = True
            self._num_landings = 0
        if self._num_landings == 0:
            low = high = num_sequences
            self._work = 0.0
            self.elapsed_ns = 0
        self._low, self._high = low, high
        self._num_landings += 1
        if self._num_landings > self._num_to_skip:
            self._work += landing.work
            self.elapsed_ns = landing.landed_ns - self._started_ns
        else:
            self._started_ns = landing.landed_ns
