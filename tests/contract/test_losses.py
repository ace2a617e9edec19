"""Stages that are killed at bad moments, and requests that kill them; over real processes."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as ListLike
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.catalog import Catalog
from coordinator.core.sequence import Sequence
from coordinator.doors.grpc.server import GenerationServer
from coordinator.engine.engine import Engine
from coordinator.scheduler import Scheduler
from stagecoach.contract.address import Address
from stagecoach.contract.errors import UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.clusters import assert_nothing_held, generate, running_stage, status_when
from tests.contract.catalogs import open_catalog
from tests.layer_ranges import split_evenly
from tests.stage_processes import StageProcess, stage_processes
from tests.tiny_models import tiny_model

HALVES = split_evenly(6, 2)
PROMPTS = [(5, 6, 7), (9, 8, 7, 6, 5), (20, 21), tuple(range(30, 70))]
NUM_TOKENS = 150
POISON = "101, 102, 103"
DEADLINE_S = 300.0

pytestmark = pytest.mark.timeout(900)

FRAGILE = f"""
import os
from stage_server.compute import torch_engine
from stage_server.__main__ import main
real_launch = torch_engine.TorchEngine.launch
def launch(engine, batch):
    if batch.token_ids is not None and "{POISON}" in str(batch.token_ids.tolist()):
        os._exit(9)
    return real_launch(engine, batch)
torch_engine.TorchEngine.launch = launch
main()
"""
"""A stage that dies of three token ids in a row."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def opened(
    model: Path, addresses: ListLike[str], num_micro_batches: int | None
) -> AsyncIterator[Engine]:
    config = ClusterConfig(
        model=str(model),
        stages=parse_stages(addresses),
        num_micro_batches=num_micro_batches,
        stage_wait_s=DEADLINE_S,
    )
    engine = await open_engine(config, open_model(config.model))
    try:
        yield engine
        async with asyncio.timeout(DEADLINE_S):
            await assert_nothing_held(engine)
    finally:
        await engine.close(grace_s=0.0)


async def keep(stage: StageProcess) -> None:
    """Starts a stage again each time that it dies."""
    while True:
        await stage.process.wait()
        await stage.start()


async def test_a_request_that_kills_a_stage_each_time_fails_and_the_others_go_on(
    model: Path,
) -> None:
    async with (
        stage_processes(model, HALVES[:1], FRAGILE) as (fragile,),
        running_stage(model, HALVES[1]) as sound,
        opened(model, (fragile.address, sound), 3) as engine,
    ):
        expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
        keeper = asyncio.create_task(keep(fragile))
        try:
            running = [asyncio.create_task(generate(engine, p, NUM_TOKENS)) for p in PROMPTS]
            await status_when(engine, lambda now: now.num_running == len(PROMPTS))
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(UnavailableError, match="again and again"):
                    await generate(engine, (4, 101, 102, 103), NUM_TOKENS)
                assert await asyncio.gather(*running) == expected
                await status_when(engine, lambda now: now.ready)
        finally:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper


async def test_both_stages_lost_at_once_and_one_again_during_the_replay(model: Path) -> None:
    async with (
        stage_processes(model, HALVES) as stages,
        opened(model, [stage.address for stage in stages], 3) as engine,
    ):
        expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
        running = [asyncio.create_task(generate(engine, p, NUM_TOKENS)) for p in PROMPTS]
        await status_when(engine, lambda now: now.num_running == len(PROMPTS))
        await asyncio.gather(*(stage.kill() for stage in stages))
        await status_when(engine, lambda now: not now.ready)
        await asyncio.gather(*(stage.start() for stage in stages))
        await status_when(engine, lambda now: now.ready)
        await stages[1].kill()
        await stages[1].start()
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.gather(*running) == expected


async def test_a_rolling_restart_under_load_counts_against_no_request(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blamed: list[frozenset[int]] = []
    real_preempt_all = Scheduler.preempt_all

    def preempt_all(scheduler: Scheduler, ids: frozenset[int]) -> list[Sequence]:
        blamed.append(ids)
        return real_preempt_all(scheduler, ids)

    monkeypatch.setattr(Scheduler, "preempt_all", preempt_all)
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(AsyncExitStack()) for _ in HALVES]
        addresses = [
            await life.enter_async_context(running_stage(model, layers))
            for life, layers in zip(lives, HALVES, strict=True)
        ]
        engine = await stack.enter_async_context(opened(model, addresses, None))
        expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
        running = [asyncio.create_task(generate(engine, p, NUM_TOKENS)) for p in PROMPTS]
        await status_when(engine, lambda now: now.num_running == len(PROMPTS))
        for life, layers, address in zip(lives, HALVES, addresses, strict=True):
            await life.aclose()
            listen = Address.parse(address, field="listen")
            await life.enter_async_context(running_stage(model, layers, listen=listen))
            await status_when(engine, lambda now: now.ready)
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.gather(*running) == expected
    assert blamed == [frozenset()] * 2


async def test_health_of_the_coordinator_follows_its_stages(model: Path) -> None:
    service = health_pb2_grpc.HealthStub
    async with running_stage(model, LayerRange(0, 3)) as first:
        async with running_stage(model, LayerRange(3, 6)) as second:
            config = ClusterConfig(
                model=str(model),
                stages=parse_stages([first, second]),
            )
            catalog, listen = Catalog(), Address("127.0.0.1", 0)
            server = GenerationServer(catalog, listen, max_model_len=256, max_num_waiting=8)
            address = await server.start()
            open_catalog(catalog, [await open_engine(config, open_model(config.model))])
            await server.serve()
            channel = grpc.aio.insecure_channel(address)
            watch = service(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(1.0):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        listen = Address.parse(second, field="listen")
        async with running_stage(model, LayerRange(3, 6), listen=listen):
            async with asyncio.timeout(DEADLINE_S):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            await channel.close()
            await server.stop(grace_s=0.0)
