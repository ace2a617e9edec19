"""A stage that is lost and comes back: requests pause, then go on exactly where they stopped."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.step import ScheduledSlice, SchedulerOutput, StepOutput
from coordinator.pipeline import wire
from coordinator.pipeline.channel_socket import ChannelSocket
from coordinator.pipeline.forward_stream import Loss
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.pipeline import Pipeline
from coordinator.pipeline.stage_link import StageLink
from coordinator.pipeline.step_deadline import StepTimeouts
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch
from stage_server.core.engine import Launched
from stagecoach.contract import status
from stagecoach.contract.address import Address
from stagecoach.contract.cluster_status import ModelStatus
from stagecoach.contract.errors import (
    DeadlineExceededError,
    UnavailableError,
    draining_error,
    is_draining,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.stage_info import StageInfo
from stagecoach.model_files import open_model
from stagecoach.v1 import stage_pb2
from tests.clusters import assert_nothing_held, generate, running_stage, status_when
from tests.faults.fault_proxy import BLACKHOLE, FaultProxy, Network
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

PROMPTS = [(5, 6, 7), (9, 8, 7, 6, 5), (20, 21)]
NUM_TOKENS = 60
CANNOT_LOOK = "cannot look at the connection, a slow link may count as dead"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("num_micro_batches", [None, 3])
@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_running_requests_survive_the_loss_of_any_stage(
    model: Path, lost: int, num_micro_batches: int | None
) -> None:
    ranges = split_evenly(6, 3)
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        addresses = [
            await (victim if index == lost else rest).enter_async_context(
                running_stage(model, layers)
            )
            for index, layers in enumerate(ranges)
        ]
        config = ClusterConfig(
            model=str(model), stages=parse_stages(addresses), num_micro_batches=num_micro_batches
        )
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        expected = [await generate(engine, prompt, NUM_TOKENS) for prompt in PROMPTS]
        num_before = (await engine.status()).num_generated_tokens
        running = [asyncio.create_task(generate(engine, p, NUM_TOKENS)) for p in PROMPTS]
        await status_when(engine, lambda now: now.num_generated_tokens >= num_before + 30)
        await victim.aclose()
        status = await engine.status()
        assert not status.ready
        assert [stage.state.value for stage in status.stages].count("lost") == 1
        assert not any(task.done() for task in running)
        listen = Address.parse(addresses[lost], field="listen")
        await rest.enter_async_context(running_stage(model, ranges[lost], listen=listen))
        assert await asyncio.gather(*running) == expected
        assert (await engine.status()).ready
        await assert_nothing_held(engine)


def is_only_cached(told: ModelStatus) -> bool:
    """Whether all that each stage holds is kept prefixes, which are free for any request."""
    cached = [stage.num_cached_kv_blocks for stage in told.stages]
    return (
        told.num_cached_kv_blocks > 0
        and cached == [told.num_cached_kv_blocks] * len(told.stages)
        and not any(stage.num_used_kv_blocks for stage in told.stages)
    )


async def test_a_stage_that_was_lost_shares_no_prefix_of_before(model: Path) -> None:
    ranges = split_evenly(6, 2)
    prompt = tuple(range(3, 43))
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        kept = await rest.enter_async_context(running_stage(model, ranges[0]))
        lost = await victim.enter_async_context(running_stage(model, ranges[1]))
        config = ClusterConfig(model=str(model), stages=parse_stages([kept, lost]))
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        expected = await generate(engine, prompt, NUM_TOKENS)
        await status_when(engine, is_only_cached)  # the stages hear of the end a moment later
        await victim.aclose()
        await status_when(engine, lambda now: now.num_cached_kv_blocks == 0)
        listen = Address.parse(lost, field="listen")
        await rest.enter_async_context(running_stage(model, ranges[1], listen=listen))
        for num_hits in (0, 32):
            assert await generate(engine, prompt, NUM_TOKENS) == expected
            assert (await engine.status()).num_prefix_hit_tokens == num_hits
        await assert_nothing_held(engine)


async def test_requests_fail_typed_when_a_stage_stays_away(model: Path) -> None:
    async with AsyncExitStack() as stack:
        victim = AsyncExitStack()
        address = await victim.enter_async_context(running_stage(model, LayerRange(0, 6)))
        config = ClusterConfig(model=str(model), stages=parse_stages([address]), stage_wait_s=0.3)
        engine = await open_engine(config, open_model(config.model))
        stack.push_async_callback(engine.close, 0.0)
        running = asyncio.create_task(generate(engine, PROMPTS[0], 250))
        await status_when(engine, lambda now: now.num_generated_tokens >= 3)
        await victim.aclose()
        with pytest.raises(UnavailableError, match="the pipeline is down"):
            await running
        spec = RequestSpec(prompt=TokenPrompt(token_ids=(1,)))
        with pytest.raises(UnavailableError, match="the pipeline is down"):
            await engine.submit(spec)
        assert engine.num_requests == 0


async def test_requests_fail_at_once_when_another_stage_comes_back(model: Path) -> None:
    """An operator must act; nobody waits the minute that a lost stage is given."""
    async with AsyncExitStack() as stack:
        victim = AsyncExitStack()
        address = await victim.enter_async_context(running_stage(model, LayerRange(0, 6)))
        config = ClusterConfig(model=str(model), stages=parse_stages([address]), stage_wait_s=3600)
        engine = await open_engine(config, open_model(config.model))
        stack.push_async_callback(engine.close, 0.0)
        expected = await generate(engine, PROMPTS[0], NUM_TOKENS)
        running = asyncio.create_task(generate(engine, PROMPTS[0], 250))
        await status_when(engine, lambda now: now.num_generated_tokens >= NUM_TOKENS + 3)
        await victim.aclose()
        listen = Address.parse(address, field="listen")
        async with running_stage(model, LayerRange(0, 5), listen=listen):
            with pytest.raises(UnavailableError, match="came back with layers 0:5, expected 0:6"):
                await running
            assert not (await engine.status()).ready
        async with running_stage(model, LayerRange(0, 6), listen=listen):
            await status_when(engine, lambda now: now.ready)
            assert await generate(engine, PROMPTS[0], NUM_TOKENS) == expected


async def test_what_was_generated_is_sent_though_a_stage_is_lost_at_that_moment(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tokens = 7
    real_run = Pipeline.run

    async def run(
        pipeline: Pipeline, output: SchedulerOutput, logits: list[LogitsRequest]
    ) -> StepOutput:
        result = await real_run(pipeline, output, logits)
        if any(piece.start_position == len(PROMPTS[0]) + num_tokens - 2 for piece in output.slices):
            (link,) = pipeline._links
            assert link._stream is not None
            link._stream._lose(UnavailableError("lost with the last token on its way"))
        return result

    async def get_info(link: StageLink, _timeout_s: float | None = None) -> StageInfo:
        raise UnavailableError("it stays away")

    async with running_stage(model, LayerRange(0, 6)) as address:
        config = ClusterConfig(model=str(model), stages=parse_stages([address]), stage_wait_s=0.5)
        engine = await open_engine(config, open_model(config.model))
        expected = await generate(engine, PROMPTS[0], num_tokens)
        monkeypatch.setattr(Pipeline, "run", run)
        monkeypatch.setattr(StageLink, "get_info", get_info)
        assert await generate(engine, PROMPTS[0], num_tokens) == expected
        with pytest.raises(UnavailableError, match="it stays away"):
            await generate(engine, PROMPTS[0], 1)
        await engine.close(0.0)


async def test_an_idle_link_stays_up_however_often_it_is_pinged(model: Path) -> None:
    lost: list[None] = []
    async with running_stage(model, LayerRange(0, 6)) as address:
        link = StageLink(
            address,
            coordinator_id="tester",
            config=LinkConfig(keepalive_s=1.0),
            on_lost=lambda *_: lost.append(None),
        )
        await link.open(await link.get_info(), epoch=1)
        await asyncio.sleep(6.0)  # gRPC's own default ends the connection after five
        assert link.is_open
        await link.close()
    assert not lost


@pytest.mark.parametrize("can_look", [True, False])
async def test_an_idle_stage_that_is_cut_off_is_lost_whether_or_not_its_connection_can_be_seen(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    can_look: bool,
) -> None:
    """Without the kernel's counts gRPC's own short wait for a ping decides, and the log says so."""
    lost = asyncio.Event()
    if not can_look:
        monkeypatch.setattr(ChannelSocket, "find", lambda _: None)
    async with running_stage(model, LayerRange(0, 6)) as address:
        with FaultProxy(address) as proxy:
            link = StageLink(
                proxy.address,
                coordinator_id="tester",
                config=LinkConfig(keepalive_s=1.0),
                on_lost=lambda *_: lost.set(),
            )
            await link.open(await link.get_info(), epoch=1)
            link.drop()
            await link.open(await link.get_info(), epoch=3)
            told = [record.message for record in caplog.records]
            assert told == ([] if can_look else [CANNOT_LOOK])
            proxy.become(BLACKHOLE)
            async with asyncio.timeout(10):
                await lost.wait()
            assert not link.is_open
            await link.close()


async def test_a_stage_at_the_end_of_a_long_way_is_given_longer_each_time(model: Path) -> None:
    """Each try began anew with the same time, too short for a connection to come about."""
    async with running_stage(model, LayerRange(0, 6)) as address:
        with FaultProxy(address) as proxy:
            proxy.become(Network(delay_s=0.2))  # four times that until GetInfo is answered
            link = StageLink(
                proxy.address,
                coordinator_id="tester",
                config=LinkConfig(connect_timeout_s=0.5),
                on_lost=lambda *_: None,
            )
            with pytest.raises(DeadlineExceededError):
                await link.get_info()
            info = None
            async with asyncio.timeout(60):
                while info is None:
                    with suppress(DeadlineExceededError):
                        info = await link.get_info()
                await link.open(info, epoch=1)
            await link.close()


async def test_a_stage_that_does_not_answer_in_time_is_given_up(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[None] = []
    async with running_stage(model, LayerRange(0, 6)) as address:
        link = StageLink(
            address,
            coordinator_id="tester",
            config=LinkConfig(step=StepTimeouts(ceiling_s=0.1, ceiling_per_token_s=0.05)),
            on_lost=lambda *_: lost.append(None),
        )
        await link.open(await link.get_info(), epoch=1)
        piece = ScheduledSlice(
            "r", kv_slot=0, start_position=0, token_ids=(5, 6), num_sampled_rows=0
        )
        output = SchedulerOutput(micro_batch_id=1, slices=(piece,), slot_ops=())
        await link.forward(wire.first_request(output), 2)
        monkeypatch.setattr(TorchEngine, "launch", lambda *_: time.sleep(1.5))
        with pytest.raises(DeadlineExceededError, match=f"stage {address}.* 2 tokens"):
            await link.forward(wire.first_request(output), 2)
        assert lost == [None]
        assert not link.is_open
        with pytest.raises(UnavailableError, match="not connected"):
            await link.forward(wire.first_request(output), 2)
        await link.close()


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_micro_batch_is_not_late_while_the_one_before_it_has_its_time(
    model: Path, monkeypatch: pytest.MonkeyPatch, *, given_up: bool
) -> None:
    real_launch = TorchEngine.launch

    def launch(engine: TorchEngine, batch: ForwardBatch) -> Launched:
        if batch.num_tokens > 1:
            time.sleep(1.2)
        return real_launch(engine, batch)

    prompt = ScheduledSlice(
        "r", kv_slot=0, start_position=0, token_ids=(5,) * 20, num_sampled_rows=0
    )
    token = ScheduledSlice("s", kv_slot=1, start_position=0, token_ids=(6,), num_sampled_rows=0)
    async with running_stage(model, LayerRange(0, 6)) as address:
        link = StageLink(
            address,
            coordinator_id="tester",
            config=LinkConfig(step=StepTimeouts(ceiling_s=0.5, ceiling_per_token_s=0.2)),
            on_lost=lambda *_: None,
        )
        await link.open(await link.get_info(), epoch=1)
        monkeypatch.setattr(TorchEngine, "launch", launch)
        long, short = (
            asyncio.create_task(
                link.forward(
                    wire.first_request(
                        SchedulerOutput(micro_batch_id=index, slices=(piece,), slot_ops=())
                    ),
                    len(piece.token_ids),
                )
            )
            for index, piece in enumerate((prompt, token))
        )
        if given_up:
            await asyncio.sleep(0.1)  # it is being computed
            long.cancel()
        await short
        assert link.is_open
        assert long.cancelled() == given_up
        await link.close()


StageContext = grpc.aio.ServicerContext[bytes, bytes]


class OpeningStage(grpc.GenericRpcHandler):
    """Opens a stream, and leaves what follows to `go_on`."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.stream_stream_rpc_method_handler(self.forward)

    async def forward(self, _: object, context: StageContext) -> None:
        request = stage_pb2.ForwardRequest.FromString(await context.read())
        opened = stage_pb2.StreamOpened(epoch=request.open.epoch)
        await context.write(stage_pb2.ForwardResponse(opened=opened).SerializeToString())
        await self.go_on(context)

    @abstractmethod
    async def go_on(self, context: StageContext) -> None: ...


class DeafStage(OpeningStage):
    """Never reads from a stream again."""

    async def go_on(self, context: StageContext) -> None:
        await asyncio.sleep(60)


class DrainingStage(OpeningStage):
    """Reads three micro-batches of each stream, then drains, and answers none."""

    async def go_on(self, context: StageContext) -> None:
        for _turn in range(3):
            await context.read()
        await context.abort(*status.trailing_metadata(draining_error()))


@asynccontextmanager
async def stage_like(model: Path, stage: OpeningStage) -> AsyncIterator[tuple[str, StageInfo]]:
    """Serves a stage that is not real; its address, and what a real one says of itself."""
    async with running_stage(model, LayerRange(0, 6)) as address:
        real = StageLink(address, coordinator_id="t", config=LinkConfig(), on_lost=lambda *_: None)
        info = await real.get_info()
        await real.close()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((stage,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", info
    await server.stop(0)


async def test_a_stage_that_stops_reading_is_given_up_in_the_middle_of_a_write(
    model: Path,
) -> None:
    async with stage_like(model, DeafStage()) as (address, info):
        link = StageLink(
            address,
            coordinator_id="tester",
            config=LinkConfig(step=StepTimeouts(ceiling_s=0.5, ceiling_per_token_s=0)),
            on_lost=lambda *_: None,
        )
        await link.open(replace(info, max_num_batched_tokens=2**20), epoch=1)
        request = stage_pb2.ForwardRequest()
        request.micro_batch.hidden_states.data = bytes(40_000_000)
        with pytest.raises(DeadlineExceededError, match="not answered in time"):
            await link.forward(request, 2)
        await link.close()


async def test_a_stage_that_drains_while_it_is_written_to_is_heard(model: Path) -> None:
    """In a third of the cases gRPC's word for a write that failed took the place of the stage's."""
    losses: list[Loss] = []
    requests = [stage_pb2.ForwardRequest() for _ in range(8)]
    for index, request in enumerate(requests):
        request.micro_batch.micro_batch_id = index
        request.micro_batch.hidden_states.data = bytes(1000)
    async with stage_like(model, DrainingStage()) as (address, info):
        link = StageLink(
            address,
            coordinator_id="tester",
            config=LinkConfig(),
            on_lost=lambda _, loss: losses.append(loss),
        )
        for epoch in range(1, 41):
            await link.open(info, epoch)
            forwards = (link.forward(request, 2) for request in requests)
            for error in await asyncio.gather(*forwards, return_exceptions=True):
                assert isinstance(error, UnavailableError)
                assert is_draining(error), error
        assert [loss.is_announced for loss in losses] == [True] * 40
        await link.close()


@asynccontextmanager
async def link_to_stage_that_answers(
    get_info: Callable[[bytes, StageContext], Awaitable[bytes]],
) -> AsyncIterator[StageLink]:
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "stagecoach.v1.StageService", {"GetInfo": grpc.unary_unary_rpc_method_handler(get_info)}
    )
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    link = StageLink(address, coordinator_id="c", config=LinkConfig(), on_lost=lambda *_: None)
    try:
        yield link
    finally:
        await link.close()
        await server.stop(None)


async def test_a_stage_that_cancels_a_call_as_it_goes_away_is_waited_for() -> None:
    async def get_info(_: bytes, context: StageContext) -> bytes:
        await context.abort(grpc.StatusCode.CANCELLED)
        raise AssertionError("abort raises")

    async with link_to_stage_that_answers(get_info) as link:
        with pytest.raises(UnavailableError, match=link.address):
            await link.get_info()


async def test_two_who_ask_a_stage_that_goes_away_both_get_an_error() -> None:
    """The first to fail closed the connection, which cancelled the task of the second: the one
    that keeps the stage connected, with which the coordinator ended."""
    second_is_here = asyncio.Event()
    num_calls = 0

    async def get_info(_: bytes, context: StageContext) -> bytes:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            second_is_here.set()
            await asyncio.sleep(60)
        await second_is_here.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE)
        raise AssertionError("abort raises")

    async with link_to_stage_that_answers(get_info) as link:
        outcomes = await asyncio.gather(link.get_info(), link.get_info(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 2
