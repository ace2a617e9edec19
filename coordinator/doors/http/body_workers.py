"""Validates bodies: small ones at once, large ones in sandboxed processes."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from coordinator.doors.http import body_job
from coordinator.doors.http.ignored_fields import IgnoredFields, ignored_fields
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.validation import validate
from coordinator.sandbox import ClientJobs, Content, ForkServer, JobPool

MAX_INLINE_BYTES = 32 * 1024
"""Most bytes of a body that is validated at once; the worst that was found takes ten
milliseconds."""

MAX_HELD_BYTES = 64 << 20
"""Most bytes of large bodies that are being read or validated at once; others are read when these
are done."""

_TIMEOUT_S = 10.0
_BYTES_PER_S = 1_000_000
"""A body may take a second more for each so many bytes."""
_MAX_PROCESSES = 2
_MAX_WAITING = 256
_MEMORY_BYTES = 1 << 30
_BODY = Content("the body", "read")

Wanted = TypeVar("Wanted", bound=ModelRequest)


class BodyWorkers:
    """Turns bodies into validated requests. Event loop only; the owner closes it."""

    def __init__(self) -> None:
        self.held = ByteBudget(MAX_HELD_BYTES)
        """What large bodies take; whoever reads one holds its bytes."""
        self._server = ForkServer("coordinator.doors.http.body_job", b"")
        pool = JobPool(
            self._server,
            max_processes=_MAX_PROCESSES,
            max_waiting=_MAX_WAITING,
            memory_bytes=_MEMORY_BYTES,
            is_background=True,
        )
        self._jobs = ClientJobs(pool)
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Prepares what processes are forked from, so that the first request need not wait."""
        self._starting = asyncio.create_task(self._server.start(), name="body workers")

    async def validate(self, body: bytes, kind: type[Wanted]) -> tuple[Wanted, IgnoredFields]:
        """Reads a body; also tells which of its fields change nothing.

        Raises:
            InvalidArgumentError: It is not what is asked for, or takes too much memory.
            DeadlineExceededError: It takes too long.
            QueueFullError: Too many wait.
            UnavailableError: This was closed.
        """
        if len(body) <= MAX_INLINE_BYTES:
            wanted = validate(body, kind)
            return wanted, ignored_fields(wanted)
        call = body_job.encode_call(body, kind)
        timeout_s = _TIMEOUT_S + len(call) / _BYTES_PER_S
        return body_job.read_answer(await self._jobs.run(call, _BODY, timeout_s=timeout_s), kind)

    async def close(self) -> None:
        """Ends all processes; bodies that are being validated fail."""
        self._jobs.close()
        await self._server.close()
        if self._starting is not None:
            # That it was closed meanwhile is no news; other failures are the server's to log.
            await asyncio.gather(self._starting, return_exceptions=True)


class ByteBudget:
    """Bytes that may be held at once, given out in the order in which they are asked for.

    Args:
        num_bytes: All of them.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._num_free = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Waits for so many bytes, or all if these are less, and holds them inside the block."""
        num_bytes = min(num_bytes, self._num_bytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        self._give_out()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._num_free += num_bytes
            else:
                self._waiting.remove((num_bytes, turn))
            self._give_out()

    def _give_out(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._num_free:
            num_bytes, turn = self._waiting.popleft()
            if turn.cancelled():  # its reader, who has not run yet, looks for it here
                self._waiting.appendleft((num_bytes, turn))
                return
            self._num_free -= num_bytes
            turn.set_result(None)
