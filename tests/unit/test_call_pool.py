"""Which call has to end for another, when a server holds as many as it may."""

import asyncio
from contextlib import ExitStack

import pytest

from stagecoach.contract.errors import QueueFullError
from stagecoach.serving.call_pool import CallPool, Place


async def wait(place: Place) -> str:
    """Waits until the place is lost; returns what the peer is told."""
    with pytest.raises(QueueFullError) as caught:
        async with place.waiting(None):
            await asyncio.Event().wait()
    return caught.value.message


async def waiting(pool: CallPool, *peers: str) -> list[asyncio.Task[str]]:
    """Calls that wait, one of each peer in this order."""
    tasks = [asyncio.create_task(wait(pool.take(peer))) for peer in peers]
    await asyncio.sleep(0)
    return tasks


async def ended(*calls: asyncio.Task[str]) -> list[bool]:
    for _ in range(5):  # a wait ends a few turns of the loop later
        await asyncio.sleep(0)
    return [call.done() for call in calls]


async def cancel(*calls: asyncio.Task[str]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_peer_at_its_limit_loses_its_own_oldest_call_that_waits() -> None:
    pool = CallPool(max_calls=10, max_calls_of_peer=2)
    calls = await waiting(pool, "b", "a", "a")
    pool.take("a")
    assert await ended(*calls) == [False, True, False]
    assert await calls[1] == "a has 2 calls at once, its limit is 2"
    await cancel(*calls)


async def test_a_full_pool_takes_from_the_peer_with_the_most_that_wait() -> None:
    pool = CallPool(max_calls=4, max_calls_of_peer=3)
    calls = await waiting(pool, "a", "b", "b", "b")
    pool.take("c")
    assert await ended(*calls) == [False, True, False, False]
    assert "limit" in await calls[1]
    await cancel(*calls)


async def test_calls_that_are_being_answered_keep_their_places() -> None:
    pool = CallPool(max_calls=3, max_calls_of_peer=2)
    places = [pool.take("a"), pool.take("a")]
    with pytest.raises(QueueFullError, match="a has 2 calls at once, its limit is 2"):
        pool.take("a")
    pool.take("b")
    with pytest.raises(QueueFullError, match="the server has 3 calls at once"):
        pool.take("c")
    places[0].free()
    places[0].free()
    pool.take("c")
    with pytest.raises(QueueFullError):
        pool.take("d")


async def test_a_wait_that_is_over_makes_the_call_one_that_is_answered() -> None:
    pool = CallPool(max_calls=1, max_calls_of_peer=1)
    place = pool.take("a")
    async with place.waiting(None):
        pass
    with pytest.raises(QueueFullError):
        pool.take("a")
    with pytest.raises(TimeoutError):
        async with place.waiting(0.0):
            await asyncio.Event().wait()


async def test_a_pool_holds_nothing_of_calls_that_ended() -> None:
    pool = CallPool(max_calls=100, max_calls_of_peer=100)
    with ExitStack() as stack:
        for number in range(100):
            stack.callback(pool.take(f"peer {number}").free)
    calls = await waiting(pool, *("a" * 3))
    await cancel(*calls)
    assert not pool._waiting
    assert set(pool._num_calls) == {"a"}  # whose places nobody freed


async def test_a_place_that_is_lost_as_its_wait_ends_is_lost() -> None:
    pool = CallPool(max_calls=1, max_calls_of_peer=1)
    has_come = asyncio.Event()

    async def call() -> None:
        async with pool.take("a").waiting(None):
            await has_come.wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    has_come.set()
    pool.take("a")
    with pytest.raises(QueueFullError):
        await task


async def test_a_wait_that_runs_out_may_lose_its_place_at_that_moment() -> None:
    pool = CallPool(max_calls=1, max_calls_of_peer=1)
    places = []

    async def call() -> None:
        async with pool.take("a").waiting(0.0):
            # Runs right after the time is up, and before this call hears of it.
            asyncio.get_running_loop().call_soon(lambda: places.append(pool.take("a")))
            await asyncio.Event().wait()

    with pytest.raises(QueueFullError):
        await call()
    assert len(places) == 1
