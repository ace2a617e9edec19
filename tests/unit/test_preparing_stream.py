"""A request is prepared by its first reader, and by nobody once it is cancelled."""

import asyncio

import pytest

from coordinator.core.events import Accepted, GenerationEvent
from coordinator.engine.preparing_stream import PreparingStream
from coordinator.engine.request_stream import RequestStream
from stagecoach.contract.errors import InternalError, InvalidArgumentError, RequestAbortedError

ACCEPTED = Accepted(request_id="r", prompt_token_ids=(1, 2, 3))


def never(_: None) -> RequestStream:
    raise AssertionError("nothing to start")


class Work:
    """Waits until it is let go."""

    def __init__(self) -> None:
        self.is_begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self) -> None:
        self.is_begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def first_event(stream: PreparingStream[None]) -> GenerationEvent:
    return await anext(stream)


async def test_the_first_event_waits_for_the_work_and_then_all_is_passed_on() -> None:
    work = Work()
    started = RequestStream(ACCEPTED, on_cancel=lambda: None)
    stream = PreparingStream(work, lambda _: started)
    assert not work.is_begun.is_set()
    reader = asyncio.create_task(first_event(stream))
    await work.is_begun.wait()
    assert not reader.done()
    work.go_on.set()
    assert await reader == ACCEPTED
    started.end(InternalError("broken"))
    with pytest.raises(InternalError, match="broken"):
        await anext(stream)


async def test_work_that_fails_ends_the_stream_with_its_error_alone() -> None:
    async def prepare() -> None:
        raise InvalidArgumentError("wrong", field="grammar")

    stream = PreparingStream(prepare, never)
    with pytest.raises(InvalidArgumentError, match="wrong"):
        await anext(stream)
    assert [event async for event in stream] == []


async def test_cancelling_ends_the_work_at_once() -> None:
    work = Work()
    stream = PreparingStream(work, never)
    reader = asyncio.create_task(first_event(stream))
    await work.is_begun.wait()
    stream.cancel()
    with pytest.raises(RequestAbortedError, match="cancelled"):
        await reader
    assert work.was_cancelled
    assert [event async for event in stream] == []


async def test_what_was_cancelled_before_it_is_read_is_never_prepared() -> None:
    work = Work()
    stream = PreparingStream(work, never)
    stream.cancel()
    with pytest.raises(RequestAbortedError, match="cancelled"):
        await anext(stream)
    assert not work.is_begun.is_set()


async def test_a_reader_that_is_cancelled_takes_the_work_with_it() -> None:
    work = Work()
    reader = asyncio.create_task(first_event(PreparingStream(work, never)))
    await work.is_begun.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert work.was_cancelled


async def test_cancelling_after_the_start_cancels_the_request() -> None:
    cancelled: list[str] = []
    started = RequestStream(ACCEPTED, on_cancel=lambda: cancelled.append("r"))
    work = Work()
    work.go_on.set()
    stream = PreparingStream(work, lambda _: started)
    assert await anext(stream) == ACCEPTED
    stream.cancel()
    assert cancelled == ["r"]
