"""Keeps one stage server of a local cluster running."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from coordinator.cli.cluster.child import Child, Process
from stagecoach.contract.errors import InternalError, StagecoachError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadProgress

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Shortest and longest time between the end of a stage and its next start; doubled each time."""

STEADY_S = 30.0
"""A stage that was ready for so long is started again after the first pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStage:
    """A stage server that is ready."""

    address: str
    layers: LayerRange
    pid: int
    metrics: str | None
    """Address of its metrics; None when it serves none."""


class StageKeeper:
    """Starts a stage server, and again whenever it dies. Used from one event loop.

    Args:
        name: Name that people read.
        start: Starts it on an address, or raises UnavailableError.
        relay_logs: Write what the stage logs to our stderr.
        report: Told in a line what becomes of the stage.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[str], Awaitable[Process]],
        *,
        relay_logs: bool,
        report: Callable[[str], None],
    ) -> None:
        self.name = name
        self._start = start
        self._relay_logs = relay_logs
        self._report = report
        self._address = "127.0.0.1:0"
        self._child: Child | None = None

    async def start(self, on_progress: Callable[[LoadProgress], None] = lambda _: None) -> None:
        """Starts the stage server; `listening` and `ready` wait for it.

        Args:
            on_progress: Told how far it is.

        Raises:
            UnavailableError: It cannot be started.
        """
        process = await self._start(self._address)
        self._child = Child(
            self.name, process, relay_logs=self._relay_logs, on_progress=on_progress
        )

    async def listening(self) -> str:
        """Waits until the stage listens, and returns where; it may be long from ready.

        Raises:
            StagecoachError: It ended before; says how.
        """
        assert self._child is not None, "the stage was started"
        self._address = await self._child.listening()  # for all its later lives, too
        return self._address

    async def ready(self) -> RunningStage:
        """Waits until the stage serves.

        Raises:
            StagecoachError: It ended before; says how.
        """
        assert self._child is not None, "the stage was started"
        content = await self._child.ready()
        match content:
            case {"address": str(address), "layers": [int(start), int(end)], "pid": int(pid)}:
                self._report(f"{self.name} is ready at {address}")
                metrics = content["metrics"]
                return RunningStage(
                    address=address,
                    layers=LayerRange(start, end),
                    pid=pid,
                    metrics=None if metrics is None else str(metrics),
                )
        raise InternalError(f"{self.name} said {content} when it was ready")

    async def keep(self) -> NoReturn:
        """Starts the stage again each time that it ends; runs until it is cancelled."""
        assert self._child is not None, "the stage was started"
        pause_s, ready_s = FIRST_PAUSE_S, time.monotonic()
        ended = await self._child.ended()
        while True:
            if time.monotonic() - ready_s > STEADY_S:
                pause_s = FIRST_PAUSE_S
            self._report(f"{ended.message}; starts again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self.start()
            except UnavailableError as error:
                ended, ready_s = error, time.monotonic()
                continue
            with suppress(StagecoachError):  # the next turn tells of its end
                await self.ready()
            ready_s = time.monotonic()
            ended = await self._child.ended()

    async def stop(self, *, grace_s: float) -> None:
        """Ends the stage server; nobody keeps it any more."""
        if self._child is not None:
            await self._child.stop(grace_s=grace_s)
