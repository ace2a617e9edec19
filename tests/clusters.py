"""Whole clusters in this process: real stage servers and an engine, on real sockets."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.drafter import MakeDrafter
from coordinator.core.events import Finished, TokensEvent
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from coordinator.scheduler.policy import Policy
from stage_server.core.activity import StageActivity
from stage_server.core.config import StageConfig
from stage_server.process.build_engine import build_engine
from stage_server.process.server import StageServer
from stage_server.wire.limits import message_limits
from stagecoach.contract.address import Address
from stagecoach.contract.cluster_status import ModelStatus
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model

IDLE_S = 30.0


@asynccontextmanager
async def running_stage(
    model: str | Path,
    layers: LayerRange,
    *,
    activity: StageActivity | None = None,
    **settings: Any,
) -> AsyncIterator[str]:
    """A stage server; yields its address.

    Args:
        model: What `--model` names.
        layers: Its layers.
        activity: Where it counts what it does.
        **settings: Further fields of `StageConfig`.
    """
    defaults: dict[str, Any] = {
        "listen": Address("127.0.0.1", 0),
        "kv_memory_bytes": 1 << 20,
        "max_num_seqs": 16,
        "threads": 1,
        "dtype": "auto" if settings.get("engine") == "emulated" else "float32",
    }
    config = StageConfig(model=str(model), layers=layers, **{**defaults, **settings})
    files = open_model(config.model)
    limits = message_limits(
        config, hidden_size=files.config.hidden_size, vocab_size=files.config.vocab_size
    )
    server = StageServer(
        config.listen,
        limits=limits,
        load=lambda: build_engine(config, files),
        activity=activity,
    )
    address = await server.start()
    try:
        await server.load()
        yield str(address)
    finally:
        await server.stop(grace_s=1.0)


@asynccontextmanager
async def running_engine(
    model: str | Path,
    ranges: Sequence[LayerRange],
    *,
    coordinator: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    make_drafter: MakeDrafter | None = None,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """Stage servers for all ranges and an engine over them; at the end nothing may be leaked.

    Args:
        model: What `--model` names.
        ranges: Layers of each stage.
        coordinator: Further fields of `ClusterConfig`.
        policy: Of the engine.
        make_drafter: Of the engine.
        **settings: Further fields of `StageConfig`.
    """
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(running_stage(model, layers, **settings))
            for layers in ranges
        ]
        config = ClusterConfig(
            model=str(model), stages=parse_stages(addresses), **(coordinator or {})
        )
        engine = await open_engine(
            config, open_model(config.model), policy=policy, make_drafter=make_drafter
        )
        try:
            yield engine
            await assert_nothing_held(engine)
        finally:
            await engine.close(grace_s=0.0)


async def status_when(engine: Engine, condition: Callable[[ModelStatus], bool]) -> ModelStatus:
    """Waits until the engine's status meets a condition."""
    while True:
        status = await engine.status()
        if condition(status):
            return status
        await asyncio.sleep(0.001)


async def assert_nothing_held(engine: Engine) -> None:
    """Asserts that once all requests have ended the stages hold the prefix cache and no more."""
    async with asyncio.timeout(IDLE_S):  # an engine that a bug has stopped never is
        await engine.wait_idle()
    status = await engine.status()
    assert status.num_running == status.num_waiting == 0
    assert status.num_free_kv_blocks == status.num_kv_blocks
    num_held_blocks: Counter[int] = Counter()
    for stage in status.stages:
        assert stage.info is not None
        num_held = stage.info.num_kv_blocks - stage.info.num_free_kv_blocks
        assert stage.pipeline is not None or num_held == 0
        num_held_blocks[stage.index] += num_held
    assert set(num_held_blocks.values()) == {status.num_cached_kv_blocks}


class Output(NamedTuple):
    """What a request that ran to its end brought."""

    token_ids: list[int]
    num_cached_tokens: int


async def generate(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    sampling: SamplingParams | None = None,
    ignore_eos: bool = True,
) -> list[int]:
    """Runs one request to its end by length and returns its tokens."""
    spec = RequestSpec(
        prompt=TokenPrompt(token_ids=tuple(prompt)),
        sampling=sampling or SamplingParams(),
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )
    return (await run_to_length(engine, spec)).token_ids


async def run_to_length(engine: Engine, spec: RequestSpec) -> Output:
    """Runs one request to its end by length."""
    token_ids: list[int] = []
    *events, finished = [event async for event in await engine.submit(spec)]
    for event in events:
        if isinstance(event, TokensEvent):
            token_ids += event.token_ids
    assert isinstance(finished, Finished)
    assert finished.finish_reason is FinishReason.LENGTH
    assert finished.num_completion_tokens == len(token_ids)
    return Output(token_ids, finished.num_cached_tokens)
