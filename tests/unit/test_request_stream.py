"""Events reach a reader in order, joined when it is slow, and end exactly once."""

import asyncio
import sys

import pytest

from coordinator.core.events import Accepted, Finished, TokenLogprobs, TokensEvent
from coordinator.core.request import FinishReason
from coordinator.engine.request_stream import RequestStream
from stagecoach.contract.errors import InternalError
from tests.ended_requests import NO_TIME

ACCEPTED = Accepted(request_id="r", prompt_token_ids=(1, 2, 3))
FINISHED = Finished(
    finish_reason=FinishReason.STOP,
    text="",
    num_prompt_tokens=3,
    num_completion_tokens=2,
    num_cached_tokens=0,
    timings=NO_TIME,
)


def create_stream() -> tuple[RequestStream, list[str]]:
    cancelled: list[str] = []
    return RequestStream(ACCEPTED, on_cancel=lambda: cancelled.append("r")), cancelled


async def test_tokens_that_wait_for_a_slow_reader_are_joined_with_their_logprobs() -> None:
    stream, _ = create_stream()
    first, second, third = (TokenLogprobs(-float(i), ((i, -0.5),)) for i in (1, 2, 3))
    stream.put(TokensEvent(token_ids=(1,), text="a", logprobs=(first,)))
    stream.put(TokensEvent(token_ids=(2, 3), text="bc", logprobs=(second, third)))
    stream.end(FINISHED)
    assert [event async for event in stream] == [
        ACCEPTED,
        TokensEvent(token_ids=(1, 2, 3), text="abc", logprobs=(first, second, third)),
        FINISHED,
    ]


async def test_text_that_waits_for_a_slow_reader_comes_in_large_pieces() -> None:
    stream, _ = create_stream()
    for token_id in range(600):
        stream.put(TokensEvent(token_ids=(token_id,), text="x"))
    stream.end(FINISHED)
    pieces = [event async for event in stream if isinstance(event, TokensEvent)]
    assert [len(piece.token_ids) for piece in pieces] == [256, 256, 88]


async def test_what_waits_for_a_slow_reader_comes_in_pieces_of_bounded_size() -> None:
    stream, _ = create_stream()
    for token_id in range(1000):
        one = TokenLogprobs(-float(token_id), ((token_id, -0.5),))
        stream.put(
            TokensEvent(token_ids=(token_id,), text="x", logprobs=(one,), text_ends=(token_id,))
        )
    stream.end(FINISHED)
    accepted, *pieces, finished = [event async for event in stream]
    assert (accepted, finished) == (ACCEPTED, FINISHED)
    tokens = [piece for piece in pieces if isinstance(piece, TokensEvent)]
    assert [len(piece.token_ids) for piece in tokens] == [2] * 500
    assert [i for piece in tokens for i in piece.token_ids] == list(range(1000))
    assert [i for piece in tokens for i in piece.text_ends] == list(range(1000))
    assert [one.top[0][0] for piece in tokens for one in piece.logprobs] == list(range(1000))


def test_log_probabilities_are_kept_to_the_bit_in_a_fraction_of_the_memory() -> None:
    top = tuple((2**32 - 1 - i, -i / 7) for i in range(20))
    packed = TokenLogprobs(-0.1, top)
    assert packed.top == top
    assert packed == TokenLogprobs(-0.1, list(top))
    assert packed != TokenLogprobs(-0.1, top[:19])
    assert sys.getsizeof(packed) + sys.getsizeof(packed._packed_top) < 400


async def test_a_waiting_reader_gets_each_event_as_it_comes() -> None:
    stream, _ = create_stream()
    seen = []

    async def read() -> None:
        seen.extend([event async for event in stream])

    reader = asyncio.create_task(read())
    for token_id in (1, 2):
        stream.put(TokensEvent(token_ids=(token_id,), text="x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    stream.end(FINISHED)
    await reader
    assert seen == [
        ACCEPTED,
        TokensEvent(token_ids=(1,), text="x"),
        TokensEvent(token_ids=(2,), text="x"),
        FINISHED,
    ]


async def test_a_failed_request_raises_after_its_tokens() -> None:
    stream, _ = create_stream()
    stream.put(TokensEvent(token_ids=(1,), text="a"))
    stream.end(InternalError("broken"))
    assert await anext(stream) == ACCEPTED
    assert await anext(stream) == TokensEvent(token_ids=(1,), text="a")
    with pytest.raises(InternalError, match="broken"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


def test_cancelling_after_the_end_does_nothing() -> None:
    stream, cancelled = create_stream()
    stream.cancel()
    assert cancelled == ["r"]
    stream.end(FINISHED)
    stream.cancel()
    assert cancelled == ["r"]


def test_a_second_terminal_event_is_a_bug() -> None:
    stream, _ = create_stream()
    stream.end(FINISHED)
    with pytest.raises(AssertionError, match="second terminal"):
        stream.end(FINISHED)
