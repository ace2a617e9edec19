"""Clients that ping as often as some do by default are served by both kinds of server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagecoach.v1 import generation_pb2, generation_pb2_grpc
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.stage_builders import running_stage

PING_MS = 500
"""Twice as often as a client that pings every second."""
OPTIONS = [
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
NUM_PINGS = 8
"""gRPC's own server ends a connection at the fourth that it takes for abuse."""


@asynccontextmanager
async def stage() -> AsyncIterator[str]:
    async with running_stage() as running:
        yield running.address


async def ask_and_watch(channel: grpc.aio.Channel) -> list[grpc.ChannelConnectivity]:
    """Asks for health, then is idle; the states of the connection meanwhile."""
    stub = health_pb2_grpc.HealthStub(channel)
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
    states = [channel.get_state()]
    while True:
        try:
            async with asyncio.timeout(NUM_PINGS * PING_MS / 1000):
                await channel.wait_for_state_change(states[-1])
        except TimeoutError:
            return states
        states.append(channel.get_state())


@pytest.mark.parametrize(
    "server", [lambda: serving(EchoEngine()), stage], ids=["coordinator", "stage"]
)
async def test_an_idle_connection_that_is_pinged_stays(
    server: "type[AbstractAsyncContextManager[str]]",
) -> None:
    async with (
        server() as address,
        grpc.aio.insecure_channel(address, options=OPTIONS) as channel,
    ):
        assert await ask_and_watch(channel) == [grpc.ChannelConnectivity.READY]


async def test_a_stream_that_says_nothing_for_long_survives_pings() -> None:
    engine = EchoEngine(delay_s=NUM_PINGS * PING_MS / 1000)
    async with (
        serving(engine) as address,
        grpc.aio.insecure_channel(address, options=OPTIONS) as channel,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GenerateRequest(
            prompt=generation_pb2.Prompt(text="a"), max_tokens=2
        )
        events = [event async for event in stub.Generate(request, timeout=60)]
        assert events[-1].HasField("finished")
