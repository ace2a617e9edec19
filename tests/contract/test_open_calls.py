"""Calls that their clients leave open, or send no message on, at both kinds of server."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.doors.access.api_key import new_key
from coordinator.doors.access.callers import Callers
from stagecoach.contract import errors
from stagecoach.contract.status import from_rpc_error
from stagecoach.serving.guarded_calls import HEALTH_CHECK, HEALTH_WATCH, host_of
from stagecoach.serving.reflection import METHODS as REFLECTION_METHODS
from stagecoach.v1 import generation_pb2, generation_pb2_grpc, stage_pb2, stage_pb2_grpc
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.grpc_servers import Server, a_coordinator, a_stage
from tests.contract.stage_builders import DEADLINE_S, opening

GENERATE = "/stagecoach.v1.GenerationService/Generate"
WATCH_STEPS = "/stagecoach.v1.GenerationService/WatchSteps"
GET_INFO = "/stagecoach.v1.StageService/GetInfo"
FORWARD = "/stagecoach.v1.StageService/Forward"
OF_COORDINATOR = (
    GENERATE,
    WATCH_STEPS,
    "/stagecoach.v1.GenerationService/Tokenize",
    "/stagecoach.v1.GenerationService/GetStatus",
)
OF_BOTH = (HEALTH_CHECK, HEALTH_WATCH)
ALICE, BOB = new_key("alice"), new_key("bob")

Metadata = tuple[tuple[str, str], ...]
Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes] | grpc.aio.UnaryStreamCall[bytes, bytes]"


EVERY_UNARY_REQUEST = [
    *((a_coordinator, method) for method in (*OF_COORDINATOR, *OF_BOTH)),
    *((a_stage, method) for method in (GET_INFO, *OF_BOTH)),
]
EVERY_PARSED_REQUEST = [
    *((a_coordinator, method) for method in (*OF_COORDINATOR, *OF_BOTH, *REFLECTION_METHODS)),
    *((a_stage, method) for method in (FORWARD, *OF_BOTH, *REFLECTION_METHODS)),
]
BOTH = [a_coordinator, a_stage]


def connect(address: str) -> grpc.aio.Channel:
    """A connection that no other channel shares."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def unsent(
    channel: grpc.aio.Channel, method: str, metadata: Metadata = ()
) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    """A call whose headers are sent, and no message yet."""
    stub: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    return stub(metadata=metadata, timeout=DEADLINE_S)


def sent(
    channel: grpc.aio.Channel, method: str, message: bytes, metadata: Metadata = ()
) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
    """A call with its one message, which the server may end before that has left."""
    stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
    return stub(message, metadata=metadata, timeout=DEADLINE_S)


async def error_of(call: Call) -> errors.StagecoachError:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"the call ended: {await call.code()}")


async def until_open(calls: Sequence[Call], num_open: int) -> Counter[grpc.StatusCode]:
    """Waits until no more than so many are open; returns how the others ended."""
    enough, done = asyncio.Event(), itertools.count(1)

    def note(_call: object) -> None:
        if next(done) >= len(calls) - num_open:
            enough.set()

    for call in calls:
        call.add_done_callback(note)
    async with asyncio.timeout(DEADLINE_S):
        await enough.wait()
    return Counter([await call.code() for call in calls if call.done()])


async def check_health(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    return int(answer.status)


async def generate(channel: grpc.aio.Channel, metadata: Metadata = ()) -> int:
    """How many messages the answer to a small request has."""
    request = generation_pb2.GenerateRequest(prompt=generation_pb2.Prompt(text="abc"), max_tokens=2)
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    call = stub.Generate(request, timeout=DEADLINE_S, metadata=metadata)
    return len([event async for event in call])


async def opened_watch(channel: grpc.aio.Channel) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    call = unsent(channel, HEALTH_WATCH)
    await call.write(b"")
    return call


async def watch(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
    """Watches health until the call ends."""
    await call.write(b"")
    while await call.read() is not grpc.aio.EOF:
        pass


def key(owner: object) -> Metadata:
    return (("authorization", f"Bearer {owner}"),)


@pytest.mark.parametrize(("server", "method"), EVERY_UNARY_REQUEST)
async def test_a_client_that_closes_its_side_without_a_message_is_told(
    server: Server, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        call = unsent(channel, method)
        await call.done_writing()
        error = await error_of(call)
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.message == f"{method} came without a message"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("server", "method"), EVERY_PARSED_REQUEST)
async def test_bytes_that_are_no_message_are_refused_without_a_traceback(
    server: Server, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        error = await error_of(sent(channel, method, b"\xff" * 50))
    assert isinstance(error, errors.InvalidArgumentError)
    assert error.message.startswith("50 bytes are not a ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("server", "method"),
    [*EVERY_UNARY_REQUEST, (a_stage, FORWARD), (a_stage, REFLECTION_METHODS[0])],
)
async def test_a_message_that_does_not_come_passes_its_deadline(
    server: Server, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("coordinator.doors.grpc", "stage_server.process"):
        monkeypatch.setattr(f"{package}.server._MESSAGE_TIMEOUT_S", 0.05)
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        error = await error_of(unsent(channel, method))
        assert isinstance(error, errors.DeadlineExceededError)
        assert error.message == f"no message of {method} within 0.05 s"


@pytest.mark.parametrize(
    ("server", "method", "request_"),
    [
        (a_coordinator, HEALTH_CHECK, b""),
        (a_coordinator, "/stagecoach.v1.GenerationService/GetStatus", b""),
        (a_stage, HEALTH_CHECK, b""),
        (a_stage, GET_INFO, b""),
        (a_stage, FORWARD, opening().SerializeToString()),
    ],
)
async def test_a_message_that_comes_late_is_answered(
    server: Server, method: str, request_: bytes
) -> None:
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        call = unsent(channel, method)
        for _ in range(20):
            await check_health(channel)
        await call.write(request_)
        assert isinstance(await call.read(), bytes)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("server", BOTH)
@pytest.mark.parametrize("method", [HEALTH_CHECK, HEALTH_WATCH])
async def test_open_calls_about_health_keep_nobody_out(server: Server, method: str) -> None:
    """5 200 checks without a message, or 8 000 watches, once closed the whole door."""
    async with server() as address, connect(address) as theirs, connect(address) as ours:
        calls = [unsent(theirs, method) for _ in range(200)]
        watchers = [asyncio.create_task(watch(call)) for call in calls if method == HEALTH_WATCH]
        endings = await until_open(calls, 128 if server is a_coordinator else 64)
        assert set(endings) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for _ in range(3):
            assert await check_health(ours) == health_pb2.HealthCheckResponse.SERVING
        assert isinstance(await (await opened_watch(ours)).read(), bytes)
        if server is a_stage:
            stub = stage_pb2_grpc.StageServiceStub(ours)
            assert await stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=DEADLINE_S)
            forward = unsent(ours, FORWARD)
            await forward.write(opening().SerializeToString())
            assert isinstance(await forward.read(), bytes)
        else:
            assert await generate(ours) == 4
        for call in calls:
            call.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


@pytest.mark.parametrize(("server", "method"), [(a_coordinator, GENERATE), (a_stage, FORWARD)])
async def test_calls_without_a_message_make_room_for_those_with_one(
    server: Server, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same host and without keys, too."""
    monkeypatch.setattr("coordinator.doors.grpc.server._MAX_OTHER_CALLS", 56)
    async with server() as address, connect(address) as ours:
        theirs = [connect(address) for _ in range(4)]
        calls = [unsent(channel, method) for channel in theirs for _ in range(30)]
        endings = await until_open(calls, 64)
        assert endings == {grpc.StatusCode.RESOURCE_EXHAUSTED: 56}
        ended = next(call for call in calls if call.done())
        assert isinstance(await error_of(ended), errors.QueueFullError)
        if server is a_stage:
            forward = unsent(ours, FORWARD)
            await forward.write(opening().SerializeToString())
            assert isinstance(await forward.read(), bytes)
        else:
            assert await generate(ours) == 4
        assert await check_health(ours) == health_pb2.HealthCheckResponse.SERVING
        for channel in theirs:
            await channel.close()


async def test_the_calls_of_one_key_leave_room_for_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though they are being answered."""
    monkeypatch.setattr("coordinator.doors.grpc.server._MAX_OTHER_CALLS", 8)
    engine = EchoEngine(delay_s=DEADLINE_S, max_running=100)
    callers = Callers.of_text(f"{ALICE.line}\n{BOB.line}")
    request = generation_pb2.GenerateRequest(prompt=generation_pb2.Prompt(text="abc"))
    async with (
        serving(engine, callers=callers) as address,
        connect(address) as ours,
        connect(address) as first,
        connect(address) as second,
    ):
        message = request.SerializeToString()
        calls = [
            sent(channel, GENERATE, message, key(ALICE.key))
            for channel in (first, second)
            for _ in range(10)
        ]
        await until_open(calls, 16)
        refused = next(call for call in calls if call.done())
        error = await error_of(refused)
        assert isinstance(error, errors.QueueFullError)
        assert error.message == "API key 'alice' has 16 calls at once, its limit is 16"
        engine.delay_s = 0.0
        assert await generate(ours, key(BOB.key)) == 4
        for call in calls:
            call.cancel()


async def test_one_connection_carries_thousands_of_requests_at_once() -> None:
    async with a_coordinator() as address, connect(address) as channel:
        answers = await asyncio.gather(*[generate(channel) for _ in range(4000)])
    assert set(answers) == {4}


@pytest.mark.parametrize("server", BOTH)
async def test_calls_that_are_cancelled_at_once_leave_no_trace(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with server() as address, connect(address) as channel:
        for number in range(300):
            call = unsent(channel, HEALTH_CHECK)
            if number % 3:
                await call.write(b"")
            if number % 2:
                await asyncio.sleep(0)
            call.cancel()
        assert await check_health(channel) == health_pb2.HealthCheckResponse.SERVING
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("server", BOTH)
async def test_a_method_that_a_servicer_inherits_is_unknown(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with server() as address, connect(address) as channel:
        call = unsent(channel, "/grpc.health.v1.Health/List")
        assert isinstance(await error_of(call), errors.IncompatibleError)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.168.1.7:50412", "192.168.1.7"),
        ("ipv6:%5B::1%5D:50412", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50412", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50412", "fe80::/64"),
        ("unix:/run/door", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_host_is_an_address_or_the_network_of_one(peer: str, host: str) -> None:
    class Context:
        def peer(self) -> str:
            return peer

    assert host_of(Context()) == host  # type: ignore[arg-type]


async def test_grpc_names_a_peer_as_a_host_is_read() -> None:
    peers = []

    async def note(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        peers.append((context.peer(), host_of(context)))
        return b""

    handler = grpc.method_handlers_generic_handler(
        "test.Peers", {"Note": grpc.unary_unary_rpc_method_handler(note)}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    ports = [("127.0.0.1", "127.0.0.1"), ("[::1]", "::/64")]
    targets = [f"{host}:{server.add_insecure_port(f'{host}:0')}" for host, _ in ports]
    await server.start()
    try:
        for target in targets:
            async with connect(target) as channel:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    "/test.Peers/Note"
                )
                await call(b"", timeout=DEADLINE_S)
    finally:
        await server.stop(None)
    assert [host for _, host in peers] == [host for _, host in ports], peers
