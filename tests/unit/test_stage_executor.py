"""The model thread: order, outcomes and stopping."""

import asyncio
import threading
import time
from functools import partial

import pytest

from stage_server.compute.executor import ModelExecutor


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
