"""How many requests each caller has at once, over all models of the process."""

from collections import Counter

from coordinator.doors.access.callers import Caller
from stagecoach.contract.errors import QueueFullError


class Share:
    """One request of a caller, which counts until it is released."""

    def __init__(self, caller: Caller, counts: Counter[Caller]) -> None:
        self._caller = caller
        self._counts = counts
        self._is_counted = True
        counts[caller] += 1

    def release(self) -> None:
        """Counts the request no more; may be called again."""
        if self._is_counted:
            self._is_counted = False
            self._counts[self._caller] -= 1
            if not self._counts[self._caller]:
                del self._counts[self._caller]


class CallerShares:
    """Counts the requests of each caller. Event loop only.

    Args:
        max_requests: Requests that one caller may have at once, waiting ones included. None: no
            limit of its own.
    """

    def __init__(self, *, max_requests: int | None) -> None:
        self._max_requests = max_requests
        self._counts: Counter[Caller] = Counter()

    def take(self, caller: Caller) -> Share:
        """Counts one more request of a caller, until the share is released.

        Raises:
            QueueFullError: The caller has its share of requests already.
        """
        num_requests = self._counts[caller]
        if self._max_requests is not None and num_requests >= self._max_requests:
            raise QueueFullError(
                f"API key {caller.name!r} has {num_requests} requests at once, its limit is "
                f"{self._max_requests}",
                limit=self._max_requests,
            )
        return Share(caller, self._counts)
