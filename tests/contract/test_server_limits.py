"""What strangers can make the gRPC servers hold is bounded; nothing but the API is served."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagecoach.contract.limits import MAX_HEADER_BYTES
from tests.contract.grpc_servers import Server, a_coordinator, a_stage
from tests.contract.stage_builders import DEADLINE_S, opening, running_stage

HEALTH = "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize("server", [a_stage, a_coordinator])
async def test_headers_above_the_limit_are_refused_and_others_are_not(server: Server) -> None:
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH)
        for num_bytes in (MAX_HEADER_BYTES, 10 * MAX_HEADER_BYTES):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(b"", metadata=(("x", "y" * num_bytes),), timeout=DEADLINE_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await check(b"", metadata=(("x", "y" * 1000),), timeout=DEADLINE_S)


@pytest.mark.parametrize("server", [a_stage, a_coordinator])
@pytest.mark.parametrize(
    "method",
    [
        "/grpc.channelz.v1.Channelz/GetServers",
        "/grpc.admin.v1.Admin/X",
    ],
)
async def test_servers_do_not_show_their_inside(server: Server, method: str) -> None:
    async with server() as address, grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_a_coordinator_is_told_back_of_its_own_fits_the_headers_of_an_error() -> None:
    async with running_stage() as stage:
        error = await stage.refusal(fingerprint="x" * 500_000)
        assert error.details["expected"] == "x" * 128
        health = health_pb2_grpc.HealthStub(stage.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert opening().open.fingerprint  # and the right one is taken
        await (await stage.open()).close()
