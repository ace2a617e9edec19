"""Runs jobs on what clients sent, and tells what becomes of them in errors for clients."""

import asyncio
import logging
from typing import NamedTuple

from coordinator.sandbox.errors import (
    CallTimeoutError,
    MemoryLimitError,
    ProcessKilledError,
    SandboxError,
)
from coordinator.sandbox.job_pool import JobPool
from stagecoach.contract.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
)

_log = logging.getLogger(__name__)


class Content(NamedTuple):
    """What a call is about, in the words of its errors."""

    name: str
    """Such as `prompt.text`."""
    done: str
    """What is done to it, as a participle."""
    field: str = ""
    """What the client called it; empty when it is no field."""


class ClientJobs:
    """A `JobPool` whose errors are typed. Event loop only; the owner closes it.

    Args:
        pool: Runs them; owned by this object.
    """

    def __init__(self, pool: JobPool) -> None:
        self._pool = pool
        self._is_closed = False

    async def run(self, call: bytes, content: Content, *, timeout_s: float) -> bytes:
        """Runs one job; to give up the wait is to end it.

        Args:
            call: What the job is called with.
            content: What it is about.
            timeout_s: How long it may run, without the wait for a process.

        Raises:
            QueueFullError: Too many wait.
            DeadlineExceededError: It takes too long.
            InvalidArgumentError: It takes too much memory.
            UnavailableError: This was closed, or each process for it was killed.
            InternalError: The job has a bug, or crashed; the log has it.
        """
        name, done, field = content
        try:
            return await self._pool.run(call, timeout_s=timeout_s)
        except asyncio.QueueFull as error:
            raise QueueFullError(
                f"too many requests wait for {name} to be {done}, the limit is"
                f" {self._pool.max_waiting}",
                limit=self._pool.max_waiting,
            ) from error
        except CallTimeoutError as error:
            raise DeadlineExceededError(
                f"{name}: {len(call)} bytes were not {done} within {timeout_s:.1f} s",
                limit_s=timeout_s,
                **({"field": field} if field else {}),
            ) from error
        except MemoryLimitError as error:
            raise InvalidArgumentError(
                f"{name}: {len(call)} bytes take more than {self._pool.memory_bytes} bytes of"
                f" memory to be {done}",
                field=field,
            ) from error
        except SandboxError as error:
            if self._is_closed:
                raise UnavailableError("the coordinator is shutting down") from error
            if isinstance(error, ProcessKilledError):
                raise UnavailableError(
                    f"{name} could not be {done}: the processes for that were killed"
                ) from error
            _log.error("job failed", extra={"content": name, "error": str(error)})
            raise InternalError(f"{name} could not be {done}; see the coordinator's log") from None

    def close(self) -> None:
        """Ends all processes; jobs that run or wait fail."""
        self._is_closed = True
        self._pool.close()
