"""The state of the coordinator once a second, for as many as look; costs nothing while nobody does.

All who look share one watch of the steps of each model, and one question to every stage. One who
reads slowly skips what is out of date: only the newest state is kept.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from coordinator.core.catalog import Catalog, CatalogModel
from coordinator.core.generation_engine import GenerationEngine
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
        """Shows the state inside the block, until the process ends.

        Raises:
            UnavailableError: No model was served yet, or none will be any more.
            QueueFullError: Too many look already.
        """
        catalog = self._door.catalog
        process = catalog.process()
        if len(self._viewers) >= MAX_VIEWERS:
            raise QueueFullError(f"{MAX_VIEWERS} viewers of the status are connected already")
        if self._looking is None:
            watches = _Watches(catalog)
            self._looking = asyncio.create_task(self._look(process, watches), name="live-status")
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self, process: ProcessState, watches: "_Watches") -> None:
        """Shows states until every watch ends, which it does when its engine closes."""
        try:
            while not watches.are_over:
                state = await _state(process, watches)
                for viewer in self._viewers:
                    viewer.show(state)
                await watches.wait(PERIOD_S)
        except Exception:  # nobody awaits this task; those who look see the end of their stream
            _log.exception("the live status stopped")
        finally:
            watches.close()
        self._looking = None
        for viewer in self._viewers:
            viewer.end()


class _Watch:
    """The steps of one engine, from now on.

    Args:
        engine: Watched until it closes.

    Raises:
        QueueFullError: Too many watch it already.
    """

    def __init__(self, engine: GenerationEngine) -> None:
        self.engine = engine
        self._feed = engine.watch_steps()
        self.window = StepWindow(self._feed.origin_ns, WINDOW_S)
        self.reading = asyncio.create_task(self._read(), name="live-status-steps")

    def close(self) -> None:
        """Stops watching."""
        self._feed.close()
        self.reading.cancel()

    async def _read(self) -> None:
        try:
            async for chunk in self._feed:
                for record in chunk.records:
                    self.window.add(record, record.emitted_ns)
                await asyncio.sleep(_READ_PAUSE_S)
        except StagecoachError as error:
            _log.info("the live status of %s ends: %s", self.engine.served_model.names[0], error)


class _Watches:
    """Watches the engine of every model that has one, though engines come and go.

    Args:
        catalog: Holds the models, of which one was served.

    Raises:
        QueueFullError: Too many watch a model already.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._by_model: dict[CatalogModel, _Watch] = {}
        try:
            self._follow()
        except BaseException:
            self.close()
            raise

    @property
    def are_over(self) -> bool:
        """True when all engines that were watched have closed, or a reader of steps has failed.

        Raises:
            Exception: What it failed of.
        """
        readings = [watch.reading for watch in self._by_model.values()]
        for reading in readings:
            if reading.done():
                reading.result()
        return bool(readings) and all(reading.done() for reading in readings)

    async def wait(self, timeout_s: float) -> None:
        """Waits for so long, or until the last engine closes; then watches those that came."""
        readings = {watch.reading for watch in self._by_model.values() if not watch.reading.done()}
        if readings:
            await asyncio.wait(readings, timeout=timeout_s, return_when=asyncio.ALL_COMPLETED)
        else:
            await asyncio.sleep(timeout_s)
        self._follow()

    def activities(self) -> list[dict[str, object]]:
        """What each model did of late, in the order of the models."""
        now_ns = time.perf_counter_ns()
        return [
            activity_json(self._window_of(model, now_ns).activity(now_ns))
            for model in self._catalog.models()
        ]

    def close(self) -> None:
        """Stops watching."""
        for watch in self._by_model.values():
            watch.close()

    def _follow(self) -> None:
        for model in self._catalog.models():
            if not model.has_engine:
                continue
            engine, watch = model.engine(), self._by_model.get(model)
            if watch is None or watch.engine is not engine:
                if watch is not None:
                    watch.close()
                self._by_model[model] = _Watch(engine)

    def _window_of(self, model: CatalogModel, now_ns: int) -> StepWindow:
        watch = self._by_model.get(model)
        return StepWindow(now_ns, WINDOW_S) if watch is None else watch.window


async def _state(process: ProcessState, watches: _Watches) -> str:
    """The status of the coordinator and the activity of its models, as one line of JSON.

    `activity` is of the first model, as all of the status that does not stand in its `models`.
    `at_s` is a time in seconds that only differences of mean something.
    """
    status, activities = status_json(await process.status()), watches.activities()
    times = {"at_s": time.monotonic(), "activity": activities[0], "activities": activities}
    return json.dumps({**status, **times})
