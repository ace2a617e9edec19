"""Tokens a second over the last seconds."""

from collections import deque


class ThroughputMeter:
    """Counts tokens in a sliding window of whole seconds.

    Args:
        window_s: Length of the window, in seconds.
    """

    def __init__(self, window_s: int = 10) -> None:
        self.total = 0
        """Tokens since start."""
        self._window_s = window_s
        self._buckets: deque[tuple[int, int]] = deque()  # (second, tokens in it)

    def add(self, num_tokens: int, now_s: float) -> None:
        """Counts tokens at a monotonic time."""
        self.total += num_tokens
        second = int(now_s)
        if self._buckets and self._buckets[-1][0] == second:
            num_tokens += self._buckets.pop()[1]
        self._buckets.append((second, num_tokens))
        self._drop_old(second)

    def tokens_per_second(self, now_s: float) -> float:
        """Mean over the window that ends now."""
        self._drop_old(int(now_s))
        return sum(num_tokens for _, num_tokens in self._buckets) / self._window_s

    def _drop_old(self, second: int) -> None:
        while self._buckets and self._buckets[0][0] <= second - self._window_s:
            self._buckets.popleft()
