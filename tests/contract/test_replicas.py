"""Several servers for one stage: spread, fail over, come back; over processes that are killed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator import assembly
from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import TokensEvent
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.engine.engine import Engine
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.step_deadline import StepTimeouts
from stagecoach.contract.address import Address
from stagecoach.contract.cluster_status import ModelStatus
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.clusters import assert_nothing_held, generate, running_stage, status_when
from tests.layer_ranges import split_evenly
from tests.stage_processes import StageProcess, stage_processes
from tests.tiny_models import tiny_model

PROMPTS = [(5, 6, 7), (9, 8, 7, 6, 5), (20, 21), (3,), (30, 31, 32), (40,), (50, 51), (60, 61, 62)]
NUM_TOKENS = 120
HALVES = split_evenly(6, 2)
DEADLINE_S = 300.0

pytestmark = pytest.mark.timeout(900)


class Cluster(NamedTuple):
    """Two servers for each of two stages, and an engine over them."""

    engine: Engine
    first: list[StageProcess]
    second: list[StageProcess]
    expected: list[list[int]]
    """What each prompt gives undisturbed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def opened(config: ClusterConfig) -> AsyncIterator[Engine]:
    engine = await open_engine(config, open_model(config.model))
    try:
        yield engine
        async with asyncio.timeout(DEADLINE_S):
            await assert_nothing_held(engine)
    finally:
        await engine.close(grace_s=0.0)


@asynccontextmanager
async def cluster(model: Path, **settings: object) -> AsyncIterator[Cluster]:
    async with stage_processes(model, [HALVES[0]] * 2 + [HALVES[1]] * 2) as stages:
        first, second = stages[:2], stages[2:]
        config = ClusterConfig(
            model=str(model),
            stages=parse_stages(
                ",".join(one.address for one in stage) for stage in (second, first)
            ),
            stage_wait_s=DEADLINE_S,
            **settings,  # type: ignore[arg-type]
        )
        async with opened(config) as engine:
            expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
            yield Cluster(engine, first, second, expected)


def pipelines(status: ModelStatus) -> dict[str, int | None]:
    return {stage.address: stage.pipeline for stage in status.stages}


async def when(engine: Engine, condition: Callable[[ModelStatus], bool]) -> ModelStatus:
    async with asyncio.timeout(DEADLINE_S):
        return await status_when(engine, condition)


def num_pipelines(status: ModelStatus) -> int:
    return len({stage.pipeline for stage in status.stages if stage.pipeline is not None})


class Streams:
    """All prompts at once."""

    def __init__(self, engine: Engine) -> None:
        self._num_tokens = [0 for _ in PROMPTS]
        self._moved = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._run(engine, index)) for index in range(len(PROMPTS))
        ]

    async def _run(self, engine: Engine, index: int) -> list[int]:
        spec = RequestSpec(
            prompt=TokenPrompt(token_ids=PROMPTS[index]), max_tokens=NUM_TOKENS, ignore_eos=True
        )
        tokens: list[int] = []
        async for event in await engine.submit(spec):
            if isinstance(event, TokensEvent):
                tokens += event.token_ids
                self._num_tokens[index] = len(tokens)
                self._moved.set()
        return tokens

    async def until(self, num_tokens: int) -> None:
        """Waits until every stream has had so many tokens."""
        async with asyncio.timeout(DEADLINE_S):
            while min(self._num_tokens) < num_tokens:
                self._moved.clear()
                await self._moved.wait()

    async def outputs(self) -> list[list[int]]:
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.gather(*self._tasks)


async def test_streams_go_on_exactly_on_what_is_left_and_servers_return_to_use(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = LinkConfig(step=StepTimeouts(ceiling_s=5.0, floor_s=3.0))
    monkeypatch.setattr(assembly, "LinkConfig", lambda: hasty)
    async with cluster(model) as (engine, first, second, expected):
        assert num_pipelines(await engine.status()) == 2

        streams = Streams(engine)
        await streams.until(5)
        status = await engine.status()
        assert status.num_running == len(PROMPTS)
        await first[0].kill()
        assert await streams.outputs() == expected
        status = await when(engine, lambda now: num_pipelines(now) == 1)
        assert status.ready
        assert pipelines(status)[first[0].address] is None

        await first[0].start()
        await when(engine, lambda now: num_pipelines(now) == 2)

        # What is left of two pipelines makes one.
        streams = Streams(engine)
        await streams.until(5)
        members = pipelines(await engine.status())
        other = next(one for one in second if members[one.address] != members[first[0].address])
        await asyncio.gather(first[0].kill(), other.kill())
        assert await streams.outputs() == expected
        status = await when(engine, lambda now: num_pipelines(now) == 1)
        alive = {one.address for one in (*first, *second)} - {first[0].address, other.address}
        assert {address for address, index in pipelines(status).items() if index == 0} == alive

        # With no pair left, requests wait for one.
        streams = Streams(engine)
        await streams.until(5)
        await first[1].kill()
        await when(engine, lambda now: not now.ready)
        await first[1].start()
        assert await streams.outputs() == expected
        await asyncio.gather(first[0].start(), other.start())
        await when(engine, lambda now: num_pipelines(now) == 2)

        # One that is frozen is given up, and taken back when it thaws.
        streams = Streams(engine)
        await streams.until(5)
        first[0].send(signal.SIGSTOP)
        try:
            assert await streams.outputs() == expected
            await when(engine, lambda now: num_pipelines(now) == 1)
        finally:
            first[0].send(signal.SIGCONT)
        await when(engine, lambda now: num_pipelines(now) == 2)
        assert await Streams(engine).outputs() == expected


@pytest.mark.slow
async def test_each_server_may_be_stopped_in_turn_under_load(model: Path) -> None:
    async with AsyncExitStack() as stack:
        servers: list[tuple[LayerRange, str, AsyncExitStack]] = []
        for layers in (*HALVES, *HALVES):
            life = await stack.enter_async_context(AsyncExitStack())
            servers.append(
                (layers, await life.enter_async_context(running_stage(model, layers)), life)
            )
        config = ClusterConfig(
            model=str(model),
            stages=parse_stages(f"{servers[i][1]},{servers[i + 2][1]}" for i in range(2)),
            stage_wait_s=DEADLINE_S,
        )
        engine = await stack.enter_async_context(opened(config))
        expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
        for layers, address, life in servers:
            streams = Streams(engine)
            await streams.until(3)
            await life.aclose()
            listen = Address.parse(address, field="listen")
            await life.enter_async_context(running_stage(model, layers, listen=listen))
            assert await streams.outputs() == expected
            await when(engine, lambda now: num_pipelines(now) == 2)


async def test_servers_of_one_stage_must_be_alike(model: Path) -> None:
    async with AsyncExitStack() as stack:
        one, other, last = [
            await stack.enter_async_context(running_stage(model, layers))
            for layers in (LayerRange(0, 3), LayerRange(0, 2), LayerRange(3, 6))
        ]
        config = ClusterConfig(model=str(model), stages=parse_stages([f"{one},{other}", last]))
        with pytest.raises(IncompatibleError, match=f"{other} has layers 0:2, expected 0:3"):
            await open_engine(config, open_model(config.model))


async def test_a_server_that_is_missing_at_the_start_is_done_without_and_taken_in_later(
    model: Path,
) -> None:
    layers = LayerRange(0, 6)
    async with AsyncExitStack() as stack:
        async with running_stage(model, layers) as late:
            pass
        life, late_life = [await stack.enter_async_context(AsyncExitStack()) for _ in range(2)]
        one = await life.enter_async_context(running_stage(model, layers))
        config = ClusterConfig(
            model=str(model), stages=parse_stages([f"{late},{one}"]), connect_timeout_s=0.5
        )
        engine = await stack.enter_async_context(opened(config))
        assert num_pipelines(await engine.status()) == 1
        expected = await generate(engine, PROMPTS[0], NUM_TOKENS)
        listen = Address.parse(late, field="listen")
        await late_life.enter_async_context(running_stage(model, layers, listen=listen))
        await when(engine, lambda now: num_pipelines(now) == 2)
        await life.aclose()
        assert await generate(engine, PROMPTS[0], NUM_TOKENS) == expected
        assert (await engine.status()).ready
        listen = Address.parse(one, field="listen")
        await life.enter_async_context(running_stage(model, layers, listen=listen))
        await when(engine, lambda now: num_pipelines(now) == 2)
