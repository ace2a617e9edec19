"""What one HTTP connection may take of the coordinator, in bytes and in time."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from coordinator.doors.http.connection import ConnectionLimits, LimitedProtocol
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import DEADLINE_S, send_then_read, serving_http
from tests.faults.waiting import eventually

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"prompt": "abc", "max_tokens": 2}).encode()
REQUEST = HEAD + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@asynccontextmanager
async def connected(
    limits: ConnectionLimits | None = None, engine: EchoEngine | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with serving_http(engine or EchoEngine(), limits=limits) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield reader, writer
        finally:
            writer.transport.abort()


async def read_error(reader: asyncio.StreamReader) -> tuple[int, str]:
    """The status and code of the last response of a connection."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        HEAD + b"content-length: -5\r\n\r\n",
        HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nnot hex\r\n",
        HEAD + b"no colon\r\n\r\n",
    ],
    ids=lambda garbage: repr(garbage[-30:]),
)
async def test_what_is_not_http_gets_one_error_and_the_end(garbage: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(garbage)
        assert await read_error(reader) == (400, "invalid_http")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n",
        b"GET http://localhost/health HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nhost: x\r\n",
        b"GET /health HTTP/1.0\r\nhost: x\r\nhost: y\r\n",
        b"GET /health HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n",
    ],
)
async def test_a_request_without_one_host_is_no_http(head: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(head + b"\r\n")
        assert await read_error(reader) == (400, "invalid_http")


async def test_an_old_request_needs_no_host() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("num_bytes", [40_000, 70_000])
async def test_a_target_that_is_too_long_is_told_so(num_bytes: int) -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * num_bytes))
        assert await read_error(reader) == (414, "target_too_long")


async def test_a_target_of_the_usual_length_is_read() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /health?%b HTTP/1.1\r\nhost: x\r\n" % (b"a" * 16_000))
        writer.write(b"connection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "start", [b"GET /", HEAD + b"x: ", HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: "]
)
async def test_a_head_or_trailer_without_end_is_cut_off(start: bytes) -> None:
    async with connected(ConnectionLimits(max_head_bytes=10_000)) as (reader, writer):
        writer.write(start)
        for _ in range(11):
            await asyncio.sleep(0)
            writer.write(b"x" * 1000)
        assert await read_error(reader) == (431, "head_too_large")


@pytest.mark.parametrize(
    ("start", "status"),
    [(b"GET / HTTP/1.1\r\nhost: x\r\nx: ", 431), (b"GARBAGE\r\n", 400)],
    ids=["too long", "no HTTP"],
)
async def test_a_client_that_reads_only_after_sending_learns_why_it_is_refused(
    start: bytes, status: int
) -> None:
    """What it had sent was left unread, which reset the connection under the answer."""

    pieces = (start, *[b"x" * 1_000_000] * 50)
    async with serving_http(EchoEngine()) as address:
        received = await asyncio.to_thread(send_then_read, address, pieces)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_refused_client_that_never_stops_sending_is_cut_off() -> None:
    limits = ConnectionLimits(max_head_bytes=1000, request_timeout_s=0.1, linger_s=60)
    async with connected(limits) as (_, writer):

        async def send_on() -> None:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0.001)

        with pytest.raises(ConnectionError):
            await send_on()


async def test_a_long_body_in_small_chunks_is_no_long_head() -> None:
    async with connected(ConnectionLimits(max_head_bytes=1000)) as (reader, writer):
        writer.write(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        body = json.dumps({"prompt": "x" * 3000, "max_tokens": 2}).encode()
        for start in range(0, len(body), 7):
            piece = body[start : start + 7]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /v1/comp", HEAD, REQUEST[:-1], HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{"],
    ids=["nothing", "half a line", "no end of head", "half a body", "half a chunk"],
)
async def test_a_request_that_never_ends_is_cut_off(
    start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(ConnectionLimits(request_timeout_s=0.05)) as (reader, writer):
        writer.write(start)
        assert await read_error(reader) == (408, "request_timeout")
    assert "internal error" not in caplog.text


async def test_an_answer_may_take_longer_than_a_request() -> None:
    engine = EchoEngine(delay_s=0.1)
    limits = ConnectionLimits(request_timeout_s=0.05)
    async with connected(limits, engine) as (reader, writer):
        writer.write(REQUEST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_serves_request_after_request_until_it_is_idle() -> None:
    async with connected(ConnectionLimits(keep_alive_s=1)) as (reader, writer):
        for _ in range(3):
            writer.write(REQUEST)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b'"cached_tokens":2}}}')
        assert await reader.read() == b""


@pytest.mark.parametrize("sent", [b"", REQUEST[:-1], REQUEST])
async def test_nothing_of_a_connection_is_kept_when_it_has_ended(sent: bytes) -> None:
    """A timer that was started as it ended once kept it, body and all, for half a minute."""
    # FastAPI keeps every application in a cache. An engine of another test is held by that, holds
    # the error that it raised, and so by the traceback the connection that heard of it.
    others = connections()
    async with connected() as (_, writer):
        writer.write(sent)
        await eventually(
            lambda: len(connections()) == len(others) + 1, within_s=DEADLINE_S, what="there"
        )
        writer.transport.abort()
        await eventually(
            lambda: len(connections()) == len(others), within_s=DEADLINE_S, what="let go of"
        )


def connections() -> list[LimitedProtocol]:
    gc.collect()
    # By type: some objects of other libraries warn when they are asked for their class.
    return [found for found in gc.get_objects() if issubclass(type(found), LimitedProtocol)]


async def test_a_reader_that_stalls_is_ended_and_its_request_with_it() -> None:
    engine = EchoEngine()
    body = json.dumps({"prompt": "abc", "max_tokens": 4000, "stream": True, "n": 8}).encode()
    async with connected(ConnectionLimits(stall_timeout_s=0.2), engine) as (reader, writer):
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        writer.write(HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        while not engine.specs:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.001)
        while engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        writer.transport.resume_reading()
        received = await reader.read()
    assert b"data: {" in received
    assert b"[DONE]" not in received


@pytest.mark.parametrize("num_requests", [1, 2, 3])
async def test_a_client_that_leaves_ends_what_is_answered_whatever_it_sent_after_it(
    num_requests: int,
) -> None:
    """Only the request that was read last used to hear of it: of several, the one not answered."""
    engine = EchoEngine(delay_s=DEADLINE_S / 10)
    async with connected(engine=engine) as (reader, writer):
        writer.write(stream_request(100) * num_requests)
        await reader.readuntil(b"data: {")
        assert len(engine.running) == 1
        writer.close()
        while engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_garbage_behind_a_second_request_does_not_get_into_the_first_answer() -> None:
    async with connected() as (reader, writer):
        writer.write(stream_request(4000))
        received = await reader.readuntil(b"data: {")
        writer.write(stream_request(1) + b"GARBAGE\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(2**16):
                received += piece
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"invalid_http" not in received
    assert b"[DONE]" not in received


def test_a_client_that_leaves_is_no_bug_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The product's event loop refuses to write to a connection that is about to be closed."""

    async def leave(num_requests: int, rest: bytes) -> None:
        engine = EchoEngine()
        async with connected(engine=engine) as (reader, writer):
            writer.write(stream_request(4000) * num_requests)
            await reader.readuntil(b"data: {")
            writer.write(rest)
            writer.write_eof()
            while engine.running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    for num_requests in (1, 2) * 3:
        for rest in (b"", b"GARBAGE\r\n\r\n"):
            uvloop.run(leave(num_requests, rest))
    assert "internal error" not in caplog.text
    assert "RuntimeError" not in caplog.text


def stream_request(num_tokens: int) -> bytes:
    """A request for a stream of that many tokens."""
    body = json.dumps({"prompt": "abc", "max_tokens": num_tokens, "stream": True}).encode()
    return HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body)


async def test_a_reader_that_is_slow_but_reads_gets_everything() -> None:
    engine = EchoEngine()
    body = json.dumps({"prompt": "abc", "max_tokens": 4000, "stream": True}).encode()
    async with connected(ConnectionLimits(stall_timeout_s=2.0), engine) as (reader, writer):
        writer.write(
            HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        received = b""
        while piece := await reader.read(2**14):
            received += piece
            await asyncio.sleep(0.002)
    assert b"data: [DONE]" in received
