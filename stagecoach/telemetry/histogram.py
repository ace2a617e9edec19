"""A histogram that costs its writer one bisection, and its readers a copy.

`prometheus_client.Histogram` takes a lock, a linear search and a float addition a bucket for each
value; a step of the engine has many values and only one thread that writes them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

NS_PER_S = 1_000_000_000

STEP_BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds for parts of one step, from a wire on loopback to a long prompt on a slow stage."""
REQUEST_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
"""Bounds for what a client waits for."""
TOKEN_BOUNDS = tuple(float(2**exponent) for exponent in range(0, 18))
"""Bounds for tokens of a prompt or an output: 1 to 131 072."""


class Histogram:
    """Counts of values by bucket. One thread writes, any may read.

    Args:
        bounds: Upper bounds of the buckets, inclusive and rising; one more takes the rest.
        unit: Values a unit of what is exported: `NS_PER_S` for nanoseconds shown as seconds.
    """

    def __init__(self, bounds: Sequence[float], *, unit: int = 1) -> None:
        self._labels = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._bounds = [bound * unit for bound in bounds]
        self._unit = unit
        self._counts = [0] * len(self._labels)
        self._sum = 0

    @property
    def total(self) -> float:
        """Their sum, in units."""
        return self._sum / self._unit

    def observe(self, value: int, count: int = 1) -> None:
        """Adds a value, as often as it occurred."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Adds what was observed so far to what is being exported."""
        counts = self._counts.copy()  # in one step, while the writer goes on
        buckets = zip(self._labels, map(float, accumulate(counts)), strict=True)
        family.add_metric(labels, list(buckets), self.total)
