"""Lets usual grammars be compiled at once, however many others take long."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from coordinator.sandbox import SandboxProcess
from stagecoach.contract.errors import QueueFullError

MAX_STARTING = 16
"""Grammars that are compiled at once and have not taken long yet."""

MAX_LONG = 2
"""Grammars that take long and are compiled at once."""

MAX_PAUSED = 6
"""Grammars that took long, and wait for others that do."""

LONG_CPU_S = 0.1
"""What a usual grammar takes is some ten milliseconds; counted by the kernel, because a busy
machine makes every clock time long."""

_LOOK_EVERY_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CompileTurns:
    """Decides whose turn it is. Event loop only."""

    def __init__(self) -> None:
        self._starting = asyncio.Semaphore(MAX_STARTING)
        self._long = asyncio.Semaphore(MAX_LONG)
        self._num_paused = 0

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """A turn of a grammar that has not taken long yet."""
        async with self._starting:
            yield

    async def has_taken_long(self, process: SandboxProcess, answer: asyncio.Future[bytes]) -> bool:
        """Waits for an answer, or until its process has worked for long; True for the latter."""
        while not (await asyncio.wait({answer}, timeout=_LOOK_EVERY_S))[0]:
            if process.process_id is not None and _cpu_s(process.process_id) >= LONG_CPU_S:
                return True
        return False

    async def go_on(self, process: SandboxProcess, answer: asyncio.Future[bytes]) -> None:
        """Waits for the answer of a process that takes long; it works when it is its turn.

        Raises:
            QueueFullError: Too many wait.
        """
        process.yield_cpu()
        if self._long.locked():
            has_turn = await self._pause(process, answer)
        else:
            has_turn = await self._long.acquire()  # at once, so that nobody takes it for free
        try:
            await asyncio.wait({answer})
        finally:
            if has_turn:
                self._long.release()

    async def _pause(self, process: SandboxProcess, answer: asyncio.Future[bytes]) -> bool:
        """Stops a process until it is its turn, or it has ended; True for the former."""
        if self._num_paused >= MAX_PAUSED:
            raise QueueFullError(
                f"{MAX_LONG + self._num_paused} grammars that take long are being compiled, at"
                f" most {MAX_LONG + MAX_PAUSED} may be",
                limit=MAX_LONG + MAX_PAUSED,
            )
        process.pause()
        self._num_paused += 1
        turn = asyncio.create_task(self._long.acquire(), name="compile turn")
        both: set[asyncio.Future[Any]] = {turn, answer}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not await _cancelled(turn):
                self._long.release()
            raise
        finally:
            self._num_paused -= 1
        has_turn = not await _cancelled(turn)
        process.resume()
        return has_turn


async def _cancelled(turn: asyncio.Task[Literal[True]]) -> bool:
    """Gives up the wait for a turn; False when it had come."""
    turn.cancel()
    await asyncio.wait({turn})
    return turn.cancelled()


def _cpu_s(process_id: int) -> float:
    """CPU time of a process; none for one that is gone, whose answer tells what it was."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
