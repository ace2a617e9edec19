"""A stage server from bind to stop: health, loading, draining, and the address it takes."""

import asyncio
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stage_server.core.batch import ForwardBatch
from stage_server.core.engine import DeviceLostError, StageEngine
from stage_server.wire.servicer import SERVICE_NAME
from stagecoach.contract.address import Address
from stagecoach.contract.errors import (
    InvalidArgumentError,
    LoadingError,
    ModelFilesError,
    UnavailableError,
)
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.v1 import stage_pb2
from tests.contract.arithmetic_engine import ArithmeticEngine, arithmetic_info
from tests.contract.stage_builders import (
    DEADLINE_S,
    RunningStage,
    bound_stage,
    micro_batch,
    running_stage,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(stage: RunningStage, service: str = SERVICE_NAME) -> int:
    stub = health_pb2_grpc.HealthStub(stage.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
    return int(answer.status)


def load_arithmetic() -> StageEngine:
    return ArithmeticEngine(arithmetic_info())


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_turns_on_only_after_loading_and_warm_up(service: str) -> None:
    released = threading.Event()

    class SlowWarmUp(ArithmeticEngine):
        def warm_up(self) -> None:
            assert released.wait(DEADLINE_S)
            super().warm_up()

    async with bound_stage(lambda: SlowWarmUp(arithmetic_info())) as stage:
        assert await health(stage, service) == NOT_SERVING
        loading = asyncio.create_task(stage.server.load())
        await asyncio.sleep(0.05)
        assert await health(stage, service) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage.info()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "warming up" in (caught.value.details() or "")
        refusal = await stage.refusal()
        assert isinstance(refusal, LoadingError)
        assert refusal.progress == LoadProgress(phase=LoadPhase.WARMING_UP)
        released.set()
        await loading
        assert await health(stage, service) == SERVING
        stream = await stage.open()
        assert len(await stream.hidden(micro_batch((0, 0, 1)))) == 1


async def test_health_answers_while_the_model_is_busy() -> None:
    released = threading.Event()
    engine = ArithmeticEngine(arithmetic_info(), lambda _batch: _wait(released))
    async with running_stage(engine) as stage:
        stream = await stage.open()
        forward = asyncio.create_task(stream.run(micro_batch((0, 0, 1))))
        await asyncio.sleep(0.05)
        assert await health(stage) == SERVING
        assert not forward.done()
        released.set()
        await forward


async def test_a_failure_to_load_is_raised_and_never_served() -> None:
    def load() -> StageEngine:
        raise ModelFilesError("model.safetensors is truncated")

    async with bound_stage(load) as stage:
        with pytest.raises(ModelFilesError, match="truncated"):
            await stage.server.load()
        assert await health(stage) == NOT_SERVING


async def test_a_health_watcher_hears_of_draining_and_does_not_delay_it() -> None:
    async with running_stage() as stage:
        stub = health_pb2_grpc.HealthStub(stage.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert (await watch.read()).status == SERVING
        started_s = time.monotonic()
        stopping = asyncio.create_task(stage.server.stop(grace_s=DEADLINE_S))
        assert (await watch.read()).status == NOT_SERVING
        assert await stopping
        assert time.monotonic() - started_s < 5


async def test_an_idle_stream_ends_at_once_when_draining() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        started_s = time.monotonic()
        assert await stage.server.stop(grace_s=DEADLINE_S)
        assert time.monotonic() - started_s < 5
        assert isinstance(await stream.end_error(), UnavailableError)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_port_zero_takes_a_free_port(host: str) -> None:
    async with bound_stage(load_arithmetic, Address(host, 0)) as stage:
        assert Address.parse(stage.address, field="listen").port > 0
        assert await health(stage) == NOT_SERVING


async def test_a_second_server_on_one_port_fails_at_bind_and_the_port_is_free_after() -> None:
    async with running_stage() as stage:
        taken = Address.parse(stage.address, field="listen")
        with pytest.raises(InvalidArgumentError, match=f"cannot listen on {stage.address}"):
            async with bound_stage(load_arithmetic, taken):
                pass
    async with bound_stage(load_arithmetic, taken) as again:
        assert again.address == stage.address


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        async with bound_stage(load_arithmetic, Address("192.0.2.1", 50051)):
            pass
    assert caught.value.field == "listen"


def _wait(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S)


async def test_health_is_off_while_the_model_thread_hangs_and_on_when_it_works_again() -> None:
    released = threading.Event()
    engine = ArithmeticEngine(arithmetic_info(), lambda _batch: _wait(released))
    async with running_stage(engine) as stage:
        watching = asyncio.create_task(stage.server.watch(hang_timeout_s=0.2))
        stub = health_pb2_grpc.HealthStub(stage.channel)
        health_watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert (await health_watch.read()).status == SERVING
        stream = await stage.open()
        forward = asyncio.create_task(stream.run(micro_batch((0, 0, 1))))
        async with asyncio.timeout(DEADLINE_S):
            assert (await health_watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="model thread hangs") as caught:
            await stage.info()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        released.set()
        await forward
        async with asyncio.timeout(DEADLINE_S):
            assert (await health_watch.read()).status == SERVING
        assert (await stage.info()).pid
        health_watch.cancel()
        watching.cancel()


async def test_a_thread_that_never_comes_back_and_a_lost_device_end_the_watch() -> None:
    released = threading.Event()
    engine = ArithmeticEngine(arithmetic_info(), lambda _batch: _wait(released))
    async with running_stage(engine) as stage:
        forward = asyncio.create_task((await stage.open()).run(micro_batch((0, 0, 1))))
        async with asyncio.timeout(DEADLINE_S):
            error = await stage.server.watch(hang_timeout_s=0.1)
        assert "the model thread hangs since" in error.message
        released.set()
        await forward

    def lose(_batch: ForwardBatch) -> None:
        raise DeviceLostError("cuda:0: AcceleratorError")

    async with running_stage(ArithmeticEngine(arithmetic_info(), lose)) as stage:
        stream = await stage.open()
        await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        assert isinstance(await stream.end_error(), UnavailableError)
        async with asyncio.timeout(DEADLINE_S):
            error = await stage.server.watch(hang_timeout_s=100.0)
        assert "the device is lost: cuda:0" in error.message
