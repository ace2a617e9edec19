"""How long a stage may take for a micro-batch: learned from its size and the stage's past times.

One limit for all stages would be far too long for most of them: a stage that answers in 30 ms is
lost long before half a minute has passed. Pure; the link brings the clock.
"""

import math
from collections import deque
from dataclasses import dataclass

NUM_WARM = 8
"""Micro-batches of a size after which their times are relied on."""

WINDOW = 256
"""Latest micro-batches of a size whose times count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeouts:
    """Bounds of what a stage may take for one micro-batch."""

    ceiling_s: float = 30.0
    """Limit for a stage of which nothing is known, at any number of tokens."""
    ceiling_per_token_s: float = 0.25
    """Added to the ceiling for every token."""
    floor_s: float = 5.0
    """Slack above the measured time, for a process that a busy box does not run."""
    factor: float = 10.0
    """Multiple of the slowest measured time of that size."""


class StepDeadline:
    """Learns how long a stage takes; one for each link.

    Sizes are told apart by powers of two. What is known of one size bounds the others: half the
    tokens take no longer, and twice as many at most twice as long.
    """

    def __init__(self, timeouts: StepTimeouts) -> None:
        self._timeouts = timeouts
        self._times_s: dict[int, deque[float]] = {}
        self._slowest_s: dict[int, float] = {}
        self._num_alarms = 0
        self._num_strange = NUM_WARM

    def limit_s(self, num_tokens: int) -> float:
        """How long a micro-batch of so many tokens may take."""
        timeouts = self._timeouts
        ceiling_s = timeouts.ceiling_s + num_tokens * timeouts.ceiling_per_token_s
        if self._num_strange > 0:
            return ceiling_s
        size = num_tokens.bit_length()
        known_s = [
            math.ldexp(slowest_s, max(0, size - known))
            for known, slowest_s in self._slowest_s.items()
            if len(self._times_s[known]) >= NUM_WARM
        ]
        if not known_s:
            return ceiling_s
        floor_s = math.ldexp(timeouts.floor_s, self._num_alarms)
        return min(ceiling_s, floor_s + timeouts.factor * min(known_s))

    def observe(self, num_tokens: int, elapsed_s: float) -> None:
        """Takes in what a micro-batch took, from its turn to its answer."""
        size = num_tokens.bit_length()
        times_s = self._times_s.setdefault(size, deque(maxlen=WINDOW))
        is_full = len(times_s) == WINDOW
        forgotten_s = times_s[0] if is_full else 0.0
        times_s.append(elapsed_s)
        slowest_s = self._slowest_s.get(size, 0.0)
        if elapsed_s >= slowest_s:
            self._slowest_s[size] = elapsed_s
        elif is_full and forgotten_s == slowest_s:
            self._slowest_s[size] = max(times_s)
        if self._num_strange > 0:
            self._num_strange -= 1
        elif self._num_alarms and len(times_s) == WINDOW:
            self._num_alarms = 0

    def restart(self) -> None:
        """Says that a new stream begins: the first steps of a stage may take longer."""
        self._num_strange = NUM_WARM

    def alarm(self) -> None:
        """Says that a limit was passed. The next are twice as long: it may have been too short."""
        self._num_alarms += 1
