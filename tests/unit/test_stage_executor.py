"""The model thread: order, outcomes and stopping."""

import asyncio
import threading
import time
from functools import partial

import pytest

from stage_server.compute.executor import Deferred, ModelExecutor, RunningJob


async def test_jobs_run_one_at_a_time_in_order_on_one_other_thread() -> None:
    executor = ModelExecutor(max_queued=100)
    ran: list[tuple[int, int]] = []

    def job(i: int) -> None:
        ran.append((i, threading.get_ident()))

    futures = [executor.submit(partial(job, i)) for i in range(100)]
    await asyncio.gather(*futures)
    assert [i for i, _ in ran] == list(range(100))
    assert len({ident for _, ident in ran} | {threading.get_ident()}) == 2
    assert executor.stop(timeout_s=5)


async def test_what_a_job_raises_reaches_its_caller_and_the_thread_goes_on() -> None:
    executor = ModelExecutor(max_queued=2)

    def explode() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await executor.submit(explode)
    assert await executor.submit(lambda: 3) == 3
    assert executor.stop(timeout_s=5)


async def test_a_job_whose_future_is_cancelled_still_runs() -> None:
    executor = ModelExecutor(max_queued=2)
    ran = threading.Event()
    executor.submit(lambda: time.sleep(0.02))
    executor.submit(ran.set).cancel()
    assert await asyncio.to_thread(ran.wait, 5)
    assert executor.stop(timeout_s=5)


async def test_more_jobs_than_agreed_are_our_own_bug() -> None:
    executor = ModelExecutor(max_queued=1)
    first = executor.submit(lambda: time.sleep(0.02))
    with pytest.raises(AssertionError):
        executor.submit(lambda: None)
    await first
    assert executor.stop(timeout_s=5)


async def test_stopping_a_busy_thread_says_so_and_an_abandoned_outcome_harms_nobody() -> None:
    executor = ModelExecutor(max_queued=1)
    release = threading.Event()
    job = executor.submit(release.wait)
    assert not executor.stop(timeout_s=0.01)
    release.set()
    await job
    assert executor.stop(timeout_s=5)


class Deferral:
    """A job's end that waits for `done`, which its device has not been for `begun`."""

    def __init__(self, outcome: str) -> None:
        self.begun, self.done = threading.Event(), threading.Event()
        self._outcome = outcome

    def __call__(self) -> str | Deferred[str]:
        self.begun.set()
        return Deferred(lambda: 0.0 if self.done.is_set() else 0.001, self._finish)

    def _finish(self) -> str:
        assert self.done.wait(5)
        if self._outcome == "fails":
            raise ValueError(self._outcome)
        return self._outcome


async def test_a_job_is_begun_while_a_device_ends_the_one_before() -> None:
    executor = ModelExecutor(max_queued=3)
    first, second, third = jobs = [Deferral(name) for name in ("a", "b", "c")]
    futures = [executor.submit(job) for job in jobs]
    assert await asyncio.to_thread(second.begun.wait, 5)
    assert not third.begun.is_set()
    second.done.set()
    third.done.set()
    assert not any(future.done() for future in futures)
    first.done.set()
    assert await asyncio.gather(*futures) == ["a", "b", "c"]
    assert executor.stop(timeout_s=5)


async def test_outcomes_are_told_in_the_order_of_the_jobs() -> None:
    executor = ModelExecutor(max_queued=3)
    told: list[object] = []
    deferral = Deferral("fails")
    futures = [executor.submit(deferral), executor.submit(lambda: "b")]
    for future in futures:
        future.add_done_callback(lambda done: told.append(done.exception() or done.result()))
    assert await asyncio.to_thread(deferral.begun.wait, 5)
    deferral.done.set()
    assert await futures[1] == "b"
    assert isinstance(told[0], ValueError)
    assert told[1:] == ["b"]
    assert executor.stop(timeout_s=5)


async def test_the_job_that_a_device_is_at_counts_as_running() -> None:
    executor = ModelExecutor(max_queued=2)
    deferral = Deferral("a")

    def job() -> str | Deferred[str]:
        executor.note_tokens(7)
        return deferral()

    future = executor.submit(job)
    assert await asyncio.to_thread(deferral.begun.wait, 5)
    assert executor.running == RunningJob(1, 7)
    deferral.done.set()
    assert await future == "a"
    assert executor.stop(timeout_s=5)
    assert executor.running is None


async def test_stopping_waits_for_the_device() -> None:
    executor = ModelExecutor(max_queued=1)
    deferral = Deferral("a")
    future = executor.submit(deferral)
    assert not executor.stop(timeout_s=0.01)
    deferral.done.set()
    assert await future == "a"
    assert executor.stop(timeout_s=5)
