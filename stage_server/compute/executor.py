"""The single thread that owns the model and its KV memory.

Everything that touches the engine is a job of this thread, and jobs run in the order of their
arrival. So nothing in the stage needs a lock. A hand-off costs one `SimpleQueue.put` there and one
`call_soon_threadsafe` back.

A job may leave its end to a device, as a `Deferred`. While the device is at work the thread takes
the next job, so that the device finds work when it has done with this one. At most two jobs are
begun at a time, and outcomes are told in the order of the jobs:

    jobs      n          n+1            n+2
    thread    [begin n]  [begin n+1]    .  [end n] [begin n+2] [end n+1] ...
    device        [------- n -------------][------ n+1 ---------------][----
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from stage_server.core.engine import DeviceLostError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deferred(Generic[T]):
    """The end of a job, for which a device is at work."""

    due_in_s: Callable[[], float]
    """Says in how many seconds to ask again; 0 once `finish` hardly waits. Never raises."""
    finish: Callable[[], T]
    """Waits for the device and gives the job's outcome; called once, on the thread."""


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


class _Ended(NamedTuple):
    """A job with its outcome."""

    job: _Job
    value: object
    error: Exception | None


class _Unfinished(NamedTuple):
    """A job that has left its end to a device."""

    job: _Job
    running: RunningJob | None
    deferred: Deferred[object]


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
        """The job that the thread or its device is at; None when both wait for work. Any thread."""
        return self._running

    @property
    def lost_device(self) -> DeviceLostError | None:
        """Why nothing can be computed any more; None while it can. Any thread."""
        return self._lost_device

    def note_tokens(self, num_tokens: int) -> None:
        """Says how many rows the present job computes; called by the job itself."""
        self._running = RunningJob(self._num_started, num_tokens)

    def submit(self, function: Callable[[], T | Deferred[T]]) -> asyncio.Future[T]:
        """Queues a call; event loop only.

        A job that is queued will run, even if its future is cancelled.

        Returns:
            What the call, or what it deferred, returned or raised.
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
        unfinished: _Unfinished | None = None
        is_stopping = False
        while not is_stopping:
            begun: _Ended | _Unfinished | None = None
            try:
                job = self._next(unfinished)
            except Empty:  # the device has done with its job, and there is no other
                pass
            else:
                is_stopping = job is None
                begun = None if job is None else self._begin(job)
                del job
            if unfinished is not None:
                self._finish(unfinished)
            if isinstance(begun, _Ended):
                self._tell(begun)
            unfinished = begun if isinstance(begun, _Unfinished) else None
            self._running = None if unfinished is None else unfinished.running
            # Or the last outcome and its tensors would live until the next job comes.
            del begun

    def _next(self, unfinished: _Unfinished | None) -> _Job | None:
        """Waits for a job; None: there will be no more.

        Raises:
            Empty: The unfinished job was due before another came.
        """
        if unfinished is None:
            return self._jobs.get()
        while True:
            due_in_s = unfinished.deferred.due_in_s()
            try:
                return self._jobs.get(block=due_in_s > 0, timeout=due_in_s)
            except Empty:
                if not due_in_s:
                    raise

    def _begin(self, job: _Job) -> _Ended | _Unfinished:
        self._num_started += 1
        self._running = RunningJob(self._num_started, 0)
        ended = self._outcome(job, job.function)
        if isinstance(ended.value, Deferred):
            return _Unfinished(job, self._running, ended.value)
        return ended

    def _finish(self, unfinished: _Unfinished) -> None:
        self._running = unfinished.running
        self._tell(self._outcome(unfinished.job, unfinished.deferred.finish))

    def _outcome(self, job: _Job, function: Callable[[], object]) -> _Ended:
        try:
            return _Ended(job, function(), None)
        except Exception as error:  # the caller gets whatever the job raised
            if isinstance(error, DeviceLostError):
                self._lost_device = error
            return _Ended(job, None, error)

    def _tell(self, ended: _Ended) -> None:
        if not ended.job.loop.is_closed():
            ended.job.loop.call_soon_threadsafe(self._resolve, ended)

    def _resolve(self, ended: _Ended) -> None:
        self._num_queued -= 1
        future = ended.job.future
        if future.cancelled():
            return
        if ended.error is not None:
            future.set_exception(ended.error)
            future.exception()  # heard: a caller that is gone shall not be warned about
        else:
            future.set_result(ended.value)
