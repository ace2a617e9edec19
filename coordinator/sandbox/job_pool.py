"""Runs jobs that keep no state, on processes that are used again."""

import asyncio

from coordinator.sandbox.attempts import unless_killed
from coordinator.sandbox.errors import JobError, MemoryLimitError, ProcessDiedError
from coordinator.sandbox.fork_server import ForkServer
from coordinator.sandbox.sandbox_process import SandboxProcess


class JobPool:
    """At most so many jobs at once; the others wait in turn. Event loop only.

    A process whose job failed in any way is not used again.

    Args:
        server: Starts the processes; closed by its owner, after the pool.
        max_processes: Jobs at once.
        max_waiting: Jobs that wait; more are refused.
        memory_bytes: What each may take beyond what it shares; None for no limit.
        is_background: Let the processes run only when others leave the CPU.
    """

    def __init__(
        self,
        server: ForkServer,
        *,
        max_processes: int,
        max_waiting: int,
        memory_bytes: int | None = None,
        is_background: bool = False,
    ) -> None:
        self._server = server
        self._slots = asyncio.Semaphore(max_processes)
        self.max_waiting = max_waiting
        self.memory_bytes = memory_bytes
        self._is_background = is_background
        self._idle: list[SandboxProcess] = []
        self._busy: set[SandboxProcess] = set()
        self._is_closed = False
        self.num_waiting = 0
        """Jobs that wait for a process."""

    @property
    def is_full(self) -> bool:
        """True while `run` refuses."""
        return self._slots.locked() and self.num_waiting >= self.max_waiting

    async def run(self, payload: bytes, *, timeout_s: float | None) -> bytes:
        """Runs one job, again if its process is killed; to give up the wait is to end it.

        Args:
            payload: Bytes that the job is given.
            timeout_s: How long it may run, without the wait for a process; None for no limit.

        Raises:
            asyncio.QueueFull: Too many wait; see `is_full`.
            ProcessDiedError: It crashed, or the pool was closed.
            ProcessKilledError: The job's process was killed each time.
            CallTimeoutError: It took too long.
            MemoryLimitError: It wanted too much memory.
            JobError: The job has a bug, or cannot be prepared.
        """
        if self.is_full:
            raise asyncio.QueueFull
        self.num_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.num_waiting -= 1
        try:
            return await unless_killed(lambda: self._run(payload, timeout_s))
        finally:
            self._slots.release()

    def close(self) -> None:
        """Ends all processes; jobs that run or wait fail with `ProcessDiedError`."""
        self._is_closed = True
        for process in (*self._idle, *self._busy):
            process.close()
        self._idle.clear()

    async def _run(self, payload: bytes, timeout_s: float | None) -> bytes:
        process = await self._take()
        self._busy.add(process)
        try:
            answer = await process.call(payload, timeout_s=timeout_s)
        except (JobError, MemoryLimitError):
            process.close()  # what it left behind is not known
            raise
        finally:
            self._busy.discard(process)
        self._idle.append(process)
        return answer

    async def _take(self) -> SandboxProcess:
        if self._is_closed:
            raise ProcessDiedError("the pool was closed")
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
        process = await self._server.fork(memory_bytes=self.memory_bytes)
        if self._is_closed:
            process.close()
        if self._is_background:
            process.yield_cpu()
        return process
