"""How long micro-batches of any size take, learned from those that came back.

The times are a curve through the latest measurements, with a point for every half doubling of the
number of tokens. No formula of the hardware stands behind it, so the curve follows whatever sets
the time: weights, KV or FLOPs.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from stagecoach.contract.stage_timings import StageTimings

_MEMORY = 8
"""Micro-batches over which a point of the curve forgets."""

_EPOCH = 1024
"""Micro-batches after which points are dropped that none of them touched."""

LIKELY_FIXED_SHARE = 0.5
"""Share of the time of the smallest micro-batch seen that a still smaller one likely takes too."""

_MIN_PREFILL_WEIGHT = 0.01


class StepTime(NamedTuple):
    """Time of one micro-batch, in nanoseconds."""

    total_ns: float
    """Compute, all stages together."""
    slowest_ns: float
    """Compute of the slowest stage."""
    wire_ns: float
    """Wire and serialization, all stages together."""

    def scaled(self, factor: float) -> "StepTime":
        """These times with compute taking `factor` times as long."""
        return StepTime(self.total_ns * factor, self.slowest_ns * factor, self.wire_ns)


class _Point(NamedTuple):
    num_tokens: float
    time: StepTime


class StepTimes:
    """The curve from tokens of a micro-batch to its time. Pure: no clock."""

    def __init__(self) -> None:
        self._points: list[_Point] = []  # by number of tokens, one a bucket
        self._buckets: list[int] = []
        self._fresh: set[int] = set()
        self._num_added = 0

    @property
    def is_known(self) -> bool:
        """False until a micro-batch came back."""
        return bool(self._points)

    def add(self, num_tokens: int, stages: Sequence[StageTimings[int]]) -> None:
        """Learns from a micro-batch of at least one token."""
        time = StepTime(
            total_ns=sum(stage.compute_ns for stage in stages),
            slowest_ns=max(stage.compute_ns for stage in stages),
            wire_ns=sum(stage.wire_ns + stage.serialize_ns for stage in stages),
        )
        found = _Point(num_tokens, time)
        bucket = round(2 * math.log2(num_tokens))
        index = bisect_left(self._buckets, bucket)
        if index < len(self._buckets) and self._buckets[index] == bucket:
            self._points[index] = _between(self._points[index], found, 1 / _MEMORY)
        else:
            self._buckets.insert(index, bucket)
            self._points.insert(index, found)
        self._fresh.add(bucket)
        self._num_added += 1
        if self._num_added % _EPOCH == 0:
            self._drop_stale()

    def of(
        self,
        num_tokens: int,
        *,
        fixed_share: float = LIKELY_FIXED_SHARE,
        fixed_share_above: float = 0.0,
    ) -> StepTime:
        """Time of a micro-batch.

        Args:
            num_tokens: Tokens of the micro-batch.
            fixed_share: Share of the time of the smallest that was seen which is assumed to stay
                below it; 0 is hopeful about splitting.
            fixed_share_above: Share of the time of the largest that was seen which is assumed not
                to grow beyond it; 0, proportional to the tokens, is cautious about joining.
        """
        points = self._points
        index = bisect_left(points, float(num_tokens), key=_num_tokens)
        if index == 0:
            share = num_tokens / points[0].num_tokens
            return points[0].time.scaled(fixed_share + (1 - fixed_share) * share)
        below = points[index - 1]
        if index == len(points):
            share = num_tokens / below.num_tokens
            return below.time.scaled(fixed_share_above + (1 - fixed_share_above) * share)
        above = points[index]
        share = (num_tokens - below.num_tokens) / (above.num_tokens - below.num_tokens)
        return _between(below, above, share).time

    def max_num_tokens(self, slowest_ns: float) -> int:
        """Most tokens with which no stage takes longer than `slowest_ns`, as far as is known."""
        below = _Point(0, StepTime(0, 0, 0))
        for point in self._points:
            if point.time.slowest_ns > slowest_ns:
                span_ns = point.time.slowest_ns - below.time.slowest_ns
                share = (slowest_ns - below.time.slowest_ns) / span_ns
                return int(below.num_tokens + share * (point.num_tokens - below.num_tokens))
            below = point
        return int(below.num_tokens * slowest_ns / max(1.0, below.time.slowest_ns))

    def prefill_weight(self, num_decodes: int) -> float:
        """Returns the cost of a prefill token, as a share of a decoded token's at this batch size.

        The share is below one where reading weights dominates, because decodes share that cost. It
        is above zero even where a measured curve falls: a micro-batch of prompts alone gets
        something done too.
        """
        smallest, largest = self._points[0], self._points[-1]
        if num_decodes == 0 or largest is smallest:
            return 1.0
        more_ns = largest.time.slowest_ns - smallest.time.slowest_ns
        more_ns_per_token = more_ns / (largest.num_tokens - smallest.num_tokens)
        ns_per_decode = max(1.0, self.of(num_decodes).slowest_ns / num_decodes)
        return min(1.0, max(_MIN_PREFILL_WEIGHT, more_ns_per_token / ns_per_decode))

    def _drop_stale(self) -> None:
        kept = [
            (bucket, point)
            for bucket, point in zip(self._buckets, self._points, strict=True)
            if bucket in self._fresh
        ]
        self._buckets = [bucket for bucket, _ in kept]
        self._points = [point for _, point in kept]
        self._fresh.clear()


def _num_tokens(point: _Point) -> float:
    return point.num_tokens


def _between(a: _Point, b: _Point, share: float) -> _Point:
    """The point at `share` of the way from `a` to `b`."""

    def mix(x: float, y: float) -> float:
        return x + share * (y - x)

    return _Point(mix(a.num_tokens, b.num_tokens), StepTime(*map(mix, a.time, b.time)))
