"""How much of the time in which there was work each stage did not compute.

    wall time       |--------- work ----------|  idle  |---- work ----|
    stage 0         |####  ####  ####  ####   |        |####  ####    |
                         ^ bubble

There is work while a request that was accepted has not ended. So waiting for the other stages, the
wire, the coordinator, and an outage are bubbles; an idle cluster has none.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

NS_PER_S = 1_000_000_000
WINDOW_MARKS = 10
"""Marks that are kept, one for each second of work."""


class _Mark(NamedTuple):
    working_ns: int
    compute_ns: tuple[int, ...]


class BubbleMeter:
    """Measures the bubbles of each stage. One thread writes, any may read.

    A step's compute counts when the step has ended, so all figures lag by one step.
    """

    def __init__(self) -> None:
        self._worked_ns = 0
        """Up to the last end of all work."""
        self._began_ns: int | None = None
        """When there began to be work. None while there is none."""
        self._compute_ns: tuple[int, ...] = ()
        self._marks: deque[_Mark] = deque([_Mark(0, ())], maxlen=WINDOW_MARKS + 1)

    def begin(self, now_ns: int) -> None:
        """There is work from now on; not called again before `end`."""
        assert self._began_ns is None, "work began twice"
        self._began_ns = now_ns

    def end(self, now_ns: int) -> None:
        """There is none any more."""
        assert self._began_ns is not None, "work ended without a beginning"
        began_ns, self._began_ns = self._began_ns, None
        self._worked_ns += now_ns - began_ns

    def add(self, compute_ns: Sequence[int], now_ns: int) -> None:
        """Counts a step.

        Args:
            compute_ns: What each stage computed, in order.
            now_ns: The time.
        """
        before = self._compute_ns or (0,) * len(compute_ns)
        self._compute_ns = tuple(map(int.__add__, before, compute_ns))
        working_ns = self.working_ns(now_ns)
        if working_ns - self._marks[-1].working_ns >= NS_PER_S:
            self._marks.append(_Mark(working_ns, self._compute_ns))

    def working_ns(self, now_ns: int) -> int:
        """Nanoseconds in which there was work, since the start."""
        began_ns = self._began_ns
        return self._worked_ns + (0 if began_ns is None else max(0, now_ns - began_ns))

    def ratios(self, now_ns: int) -> tuple[float, ...]:
        """Share [0, 1] of the last ten seconds of work in which each stage did not compute.

        Of what there was, while that is less; of the very first second too. Empty before the first
        step.
        """
        compute_ns, oldest = self._compute_ns, self._marks[0]
        working_ns = self.working_ns(now_ns) - oldest.working_ns
        before = oldest.compute_ns or (0,) * len(compute_ns)
        return tuple(
            min(1.0, max(0.0, 1 - (ns - ns_before) / working_ns)) if working_ns > 0 else 0.0
            for ns, ns_before in zip(compute_ns, before, strict=True)
        )
