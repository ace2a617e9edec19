"""The single thread that owns the model and its KV memory.

Everything that touches the engine is a job of this thread, and jobs run in the order of their
arrival. So nothing in the stage needs a lock. A hand-off costs one `SimpleQueue.put` there and one
`call_soon_threadsafe` back.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from stage_server.core.engine import DeviceLostError

T = TypeVar("T")


class RunningJob(NamedTuple):
    """What the thread is at."""

    number: int
    """Tells it from every other job."""
    num_tokens: int
    """Rows that it computes; 0 when it did not say so, or computes none."""


class _Job(NamedTuple):
    """One call and where its outcome goes."""

    function: Callable[[], object]
    future: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop


class ModelExecutor:
    """Runs jobs on one thread of its own.

    The thread is a daemon: a forward that hangs must not keep the process from exiting.

    Args:
        max_queued: Jobs that may wait or run at once. Callers keep to it by construction, so more
            is our own bug.
    """

    def __init__(self, *, max_queued: int) -> None:
        self._max_queued = max_queued
        self._num_queued = 0
        self._num_started = 0
        self._running: RunningJob | None = None
        self._lost_device: DeviceLostError | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def running(self) -> RunningJob | None:
        """The job that runs now; None when the thread waits for work. Any thread."""
        return self._running

    @property
    def lost_device(self) -> DeviceLostError | None:
        """Why nothing can be computed any more; None while it can. Any thread."""
        return self._lost_device

    def note_tokens(self, num_tokens: int) -> None:
        """Says how many rows the present job computes; called by the job itself."""
        self._running = RunningJob(self._num_started, num_tokens)

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Queues a call; event loop only.

        A job that is queued will run, even if its future is cancelled.

        Returns:
            What the call returned or raised.
        """
        assert self._num_queued < self._max_queued, f"{self._num_queued} jobs are queued"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._num_queued += 1
        self._jobs.put(_Job(function, future, loop))  # type: ignore[arg-type]
        return future

    def stop(self, *, timeout_s: float) -> bool:
        """Ends the thread after the jobs that are queued; blocks.

        Returns:
            False when the thread is still busy after `timeout_s`.
        """
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            value = error = None
            self._num_started += 1
            self._running = RunningJob(self._num_started, 0)
            try:
                value = job.function()
            except Exception as raised:  # the caller gets whatever the job raised
                error = raised
                if isinstance(raised, DeviceLostError):
                    self._lost_device = raised
            self._running = None
            if job.loop.is_closed():
                return
            job.loop.call_soon_threadsafe(self._resolve, job.future, value, error)
            # Or the last outcome and its tensors would live until the next job comes.
            del job, value, error

    def _resolve(
        self, future: asyncio.Future[object], value: object, error: Exception | None
    ) -> None:
        self._num_queued -= 1
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # heard: a caller that is gone shall not be warned about
        else:
            future.set_result(value)
