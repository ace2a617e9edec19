"""The state of the coordinator once a second, for as many as look; costs nothing while nobody does.

All who look share one watch of steps, those of the first model, and one question to every stage.
One who reads slowly skips what is out of date: only the newest state is kept.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from coordinator.core.generation_engine import StepFeed
from coordinator.core.process_state import ProcessState
from coordinator.doors.http.door import Door
from coordinator.observe.step_window import StepWindow, activity_json
from stagecoach.contract.errors import QueueFullError, StagecoachError
from stagecoach.contract.status_json import status_json

MAX_VIEWERS = 64
"""Who may look at once."""

PERIOD_S = 1.0
"""Time between two states that are sent."""

WINDOW_S = 5
"""Over which the activity is summed up."""

_READ_PAUSE_S = 0.05
"""Time between two readings of steps, so that they are taken many at a time."""

_log = logging.getLogger(__name__)


class Viewer:
    """Async iterator over states, each one JSON object, for one reader."""

    def __init__(self) -> None:
        self._newest: str | None = None
        self._is_over = False
        self._changed = asyncio.Event()

    def show(self, state: str) -> None:
        """Replaces what has not been read."""
        self._newest = state
        self._changed.set()

    def end(self) -> None:
        """Ends the iteration."""
        self._is_over = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Waits for the next state."""
        await self._changed.wait()
        if self._is_over or self._newest is None:
            raise StopAsyncIteration
        self._changed.clear()
        return self._newest


class LiveStatus:
    """Looks at a coordinator while somebody wants to see it. Event loop only.

    Args:
        door: Holds the models.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._viewers: set[Viewer] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """Shows the state inside the block, until the engine closes.

        Raises:
            UnavailableError: There is no engine yet, or no more.
            QueueFullError: Too many look already.
        """
        catalog = self._door.catalog
        process, engine = catalog.process(), catalog.engines()[0]
        if len(self._viewers) >= MAX_VIEWERS:
            raise QueueFullError(f"{MAX_VIEWERS} viewers of the status are connected already")
        if self._looking is None:
            self._looking = asyncio.create_task(
                self._look(process, engine.watch_steps()), name="live-status"
            )
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self, process: ProcessState, feed: StepFeed) -> None:
        """Shows states until the feed ends, which it does when the engine closes."""
        window = StepWindow(feed.origin_ns, WINDOW_S)
        reading = asyncio.create_task(_read(feed, window), name="live-status-steps")
        try:
            while not reading.done():
                state = await _state(process, window)
                for viewer in self._viewers:
                    viewer.show(state)
                await asyncio.wait({reading}, timeout=PERIOD_S)
            reading.result()
        except Exception:  # nobody awaits this task; those who look see the end of their stream
            _log.exception("the live status stopped")
        finally:
            feed.close()
            reading.cancel()
        self._looking = None
        for viewer in self._viewers:
            viewer.end()


async def _read(feed: StepFeed, window: StepWindow) -> None:
    """Counts steps until the engine closes."""
    try:
        async for chunk in feed:
            for record in chunk.records:
                window.add(record, record.emitted_ns)
            await asyncio.sleep(_READ_PAUSE_S)
    except StagecoachError as error:
        _log.info("the live status ends: %s", error)


async def _state(process: ProcessState, window: StepWindow) -> str:
    """The status of the coordinator and the activity of its first model, as one line of JSON.

    `at_s` is a time in seconds that only differences of mean something.
    """
    status = status_json(await process.status())
    activity = activity_json(window.activity(time.perf_counter_ns()))
    return json.dumps({**status, "at_s": time.monotonic(), "activity": activity})
