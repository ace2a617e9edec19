"""Bounds the calls that a server holds open, so that no peer keeps the others out.

A call that waits for its peer, for a message or for a change of what it watches, has its place only
until another needs it. A call that is being answered keeps it. Event loop only.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stagecoach.contract.errors import QueueFullError


class CallPool:
    """The places of one kind of calls.

    Args:
        max_calls: Calls at once.
        max_calls_of_peer: Calls of one peer at once.
        is_of_watches: They wait for as long as they live, so each may have to end for another.
    """

    def __init__(
        self, *, max_calls: int, max_calls_of_peer: int, is_of_watches: bool = False
    ) -> None:
        self.max_calls = max_calls
        self.is_of_watches = is_of_watches
        self._max_calls_of_peer = max_calls_of_peer
        self._num_calls: Counter[str] = Counter()
        self._waiting: dict[str, dict[Place, None]] = {}
        """By peer; the oldest first."""

    def take(self, peer: str) -> "Place":
        """Gives a call its place, which must be freed.

        Where the peer has all that it may have, its oldest call that waits ends. Where the pool is
        full, the oldest ends of the peer with the most such calls.

        Args:
            peer: Whose call it is.

        Raises:
            QueueFullError: Every call that would have to end is being answered.
        """
        if self._num_calls[peer] >= self._max_calls_of_peer:
            self._end_oldest(
                peer,
                f"{peer} has {self._num_calls[peer]} calls at once, its limit is "
                f"{self._max_calls_of_peer}",
            )
        elif self._num_calls.total() >= self.max_calls:
            busiest = max(self._waiting, key=lambda name: len(self._waiting[name]), default=peer)
            self._end_oldest(
                busiest, f"the server has {self.max_calls} calls at once, which is its limit"
            )
        self._num_calls[peer] += 1
        return Place(self, peer)

    def _end_oldest(self, peer: str, why: str) -> None:
        waiting = self._waiting.get(peer)
        if not waiting:
            raise QueueFullError(why)
        next(iter(waiting)).give_up(why)

    def _starts_to_wait(self, place: "Place") -> None:
        self._waiting.setdefault(place.peer, {})[place] = None

    def _waits_no_more(self, place: "Place") -> None:
        waiting = self._waiting.get(place.peer, {})
        waiting.pop(place, None)
        if not waiting:
            self._waiting.pop(place.peer, None)

    def _free(self, place: "Place") -> None:
        self._num_calls[place.peer] -= 1
        if not self._num_calls[place.peer]:
            del self._num_calls[place.peer]


class Place:
    """One call's place in a pool.

    Args:
        pool: Where it is.
        peer: Whose call it is.
    """

    def __init__(self, pool: CallPool, peer: str) -> None:
        self.peer = peer
        self._pool = pool
        self._is_free = False
        self._wait: asyncio.Timeout | None = None
        self._why_lost: str | None = None

    @asynccontextmanager
    async def waiting(self, timeout_s: float | None) -> AsyncIterator[None]:
        """Lets another call have the place while the body waits for the peer.

        Args:
            timeout_s: How long the body may take. None: as long as it likes.

        Raises:
            TimeoutError: It took longer.
            QueueFullError: Another call needed the place.
        """
        try:
            async with asyncio.timeout(timeout_s) as self._wait:
                self._pool._starts_to_wait(self)
                try:
                    yield
                finally:
                    self._pool._waits_no_more(self)
        except TimeoutError:
            if self._why_lost is None:
                raise
        if self._why_lost is not None:  # also where the body ended at that moment
            raise QueueFullError(self._why_lost)

    def give_up(self, why: str) -> None:
        """Frees the place and ends the wait of its call.

        Args:
            why: What its peer is told.
        """
        assert self._wait is not None, "only a call that waits can give up its place"
        self._why_lost = why
        self._pool._waits_no_more(self)
        self.free()
        if not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    def free(self) -> None:
        """Lets others have the place; once is enough."""
        if not self._is_free:
            self._is_free = True
            self._pool._free(self)
