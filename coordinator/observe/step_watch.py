"""Hands the records of steps to whoever watches.

Costs the engine one comparison a step while nobody does. A watcher that does not read in time
loses its oldest records, which are counted; the engine never waits for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from coordinator.core.step_chunk import StepChunk
from stagecoach.contract.errors import QueueFullError, StagecoachError
from stagecoach.contract.step_record import StepRecord

MAX_WATCHES = 16
"""Watchers at once; each holds a buffer."""

BUFFER_RECORDS = 4096
"""Records that a watcher may leave unread before it loses the oldest."""

CHUNK_RECORDS = 256
"""Most records that a watcher gets at once; bounds the message that they become."""


class StepWatch:
    """Async iterator over `StepChunk`s, for one reader, without end until the hub closes.

    Args:
        origin_ns: Steps that began before are not told, in nanoseconds of `time.perf_counter_ns`.
        max_records: Unread records that are kept.
        on_close: Called each time the reader closes the watch.
    """

    def __init__(self, *, origin_ns: int, max_records: int, on_close: Callable[[], None]) -> None:
        self.origin_ns = origin_ns
        self._records: deque[StepRecord] = deque(maxlen=max_records)
        self._num_lost = 0
        self._ending: StagecoachError | None = None
        self._changed = asyncio.Event()
        self._on_close = on_close

    def put(self, record: StepRecord) -> None:
        """Adds a record; drops the oldest one when there is no room."""
        if record.started_ns < self.origin_ns:
            return
        self._num_lost += len(self._records) == self._records.maxlen
        self._records.append(record)
        self._changed.set()

    def end(self, error: StagecoachError) -> None:
        """Ends the iteration with an error, after what is unread."""
        self._ending = error
        self._changed.set()

    def close(self) -> None:
        """Stops watching; may be called again."""
        self._on_close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepChunk:
        """Waits for records.

        Raises:
            StagecoachError: Why the watch ended.
        """
        while not self._records:
            if self._ending is not None:
                raise self._ending
            self._changed.clear()
            await self._changed.wait()
        num_records = min(len(self._records), CHUNK_RECORDS)
        records = tuple(self._records.popleft() for _ in range(num_records))
        num_lost, self._num_lost = self._num_lost, 0
        return StepChunk(records, num_lost)


class StepHub:
    """The watches of one engine. Used from one event loop.

    Args:
        max_records: Unread records that are kept for each watcher.
    """

    def __init__(self, max_records: int = BUFFER_RECORDS) -> None:
        self._max_records = max_records
        self._watches: set[StepWatch] = set()
        self._ending: StagecoachError | None = None

    @property
    def is_watched(self) -> bool:
        """True when a record would reach somebody."""
        return bool(self._watches)

    def watch(self, origin_ns: int) -> StepWatch:
        """Starts a watch, which its reader closes.

        Args:
            origin_ns: Now, in nanoseconds of `time.perf_counter_ns`.

        Raises:
            QueueFullError: There are `MAX_WATCHES` already.
            StagecoachError: The hub has ended, for this reason.
        """
        if self._ending is not None:
            raise self._ending
        if len(self._watches) >= MAX_WATCHES:
            raise QueueFullError(f"{MAX_WATCHES} watchers of steps are connected already")
        watch = StepWatch(
            origin_ns=origin_ns,
            max_records=self._max_records,
            on_close=lambda: self._watches.discard(watch),
        )
        self._watches.add(watch)
        return watch

    def publish(self, record: StepRecord) -> None:
        """Gives a record to every watcher."""
        for watch in self._watches:
            watch.put(record)

    def end(self, error: StagecoachError) -> None:
        """Ends every watch with an error, and takes no more."""
        self._ending = error
        for watch in self._watches:
            watch.end(error)
