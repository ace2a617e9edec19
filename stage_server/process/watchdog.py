"""Notices that the model thread hangs, or that its device is lost.

While a kernel of the device never returns, gRPC's own threads still answer pings and health, so
nothing else would notice. Time in which this process was stopped or starved does not count.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum

from stage_server.compute.executor import ModelExecutor, RunningJob
from stagecoach.contract.errors import InternalError

PERIOD_S = 0.25
"""How often the thread is looked at."""

TIMEOUT_PER_TOKEN_S = 0.25
"""Added to the time that a step may take, for each of its tokens."""

EXIT_FACTOR = 4.0
"""A step that takes this many times what it may take is waited for no more."""

_log = logging.getLogger(__name__)


class Verdict(Enum):
    """What is to be thought of the model thread."""

    WORKS = "works"
    HANGS = "hangs"
    IS_LOST = "is lost"


class JobMeter:
    """Measures how long one job has been running; pure.

    Args:
        timeout_s: What a step may take, besides what its tokens add.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._number: int | None = None
        self._waited_s = 0.0
        self._last_s = 0.0

    @property
    def waited_s(self) -> float:
        """How long the present job has been running."""
        return self._waited_s

    def look(self, job: RunningJob | None, now_s: float) -> Verdict:
        """Judges the thread by what it runs now.

        Args:
            job: What it runs; None when it waits for work.
            now_s: On a monotonic clock.
        """
        # A process that was stopped, or a box that slept, is not a thread that hangs.
        elapsed_s = min(now_s - self._last_s, 2 * PERIOD_S)
        self._last_s = now_s
        if job is None or job.number != self._number:
            self._number = None if job is None else job.number
            self._waited_s = 0.0
            return Verdict.WORKS
        self._waited_s += elapsed_s
        timeout_s = self._timeout_s + job.num_tokens * TIMEOUT_PER_TOKEN_S
        if self._waited_s > EXIT_FACTOR * timeout_s:
            return Verdict.IS_LOST
        return Verdict.HANGS if self._waited_s > timeout_s else Verdict.WORKS


async def watch(
    executor: ModelExecutor, *, timeout_s: float, on_change: Callable[[bool], Awaitable[None]]
) -> InternalError:
    """Watches the model thread until the process cannot go on.

    Args:
        executor: Owns the thread.
        timeout_s: What a step may take, besides what its tokens add.
        on_change: Told True when the thread hangs, and False when it works again.

    Returns:
        Why the process must end.
    """
    meter = JobMeter(timeout_s)
    hangs = False
    while True:
        await asyncio.sleep(PERIOD_S)
        if executor.lost_device is not None:
            return InternalError(f"the device is lost: {executor.lost_device}")
        verdict = meter.look(executor.running, time.monotonic())
        if verdict is Verdict.IS_LOST:
            return InternalError(f"the model thread hangs since {meter.waited_s:.0f} s")
        if hangs != (verdict is Verdict.HANGS):
            hangs = verdict is Verdict.HANGS
            _log.error("model thread hangs" if hangs else "model thread works again")
            await on_change(hangs)
