"""WatchSteps on a real socket: order, origin, slow watchers, and every way that a watch ends."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from coordinator.core.catalog import Catalog
from coordinator.doors.grpc.server import GenerationServer
from coordinator.observe.step_watch import MAX_WATCHES, StepHub
from stagecoach.client import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    QueueFullError,
    RequestAbortedError,
    StepRecord,
    UnavailableError,
)
from stagecoach.contract.address import Address
from stagecoach.contract.status import from_rpc_error
from stagecoach.v1 import generation_pb2, generation_pb2_grpc
from tests.clusters import generate, running_engine
from tests.contract.catalogs import open_catalog
from tests.contract.echo_engine import EchoEngine, bound, serving
from tests.contract.test_generation_client import BackgroundServer
from tests.contract.test_generation_service import until
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

DEADLINE_S = 90.0


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
async def client(engine: EchoEngine) -> AsyncIterator[AsyncClient]:
    async with serving(engine) as address, AsyncClient(address) as client:
        yield client


async def test_a_watch_tells_the_steps_of_all_requests_in_order(client: AsyncClient) -> None:
    async with await client.watch_steps(timeout_s=DEADLINE_S) as watch:
        await client.complete("abc", max_tokens=4)
        await client.complete("de", max_tokens=2)
        records = [await anext(watch) for _ in range(6)]
    assert [record.micro_batch_id for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record.num_prefill_tokens for record in records] == [3, 0, 0, 0, 2, 0]
    starts = [record.started_ns for record in records]
    assert starts == sorted(starts)
    assert watch.num_lost == 0
    assert watch.origin_unix_ns > 0


def test_the_synchronous_watch_tells_the_same() -> None:
    with (
        BackgroundServer(EchoEngine()) as server,
        Client(server.address) as client,
        client.watch_steps(timeout_s=DEADLINE_S) as watch,
    ):
        client.complete("abc", max_tokens=3)
        assert [next(watch).num_prefill_tokens for _ in range(3)] == [3, 0, 0]
        watch.close()
        with pytest.raises(RequestAbortedError):
            next(watch)


async def test_what_a_slow_watcher_lost_is_told(engine: EchoEngine, client: AsyncClient) -> None:
    engine.steps = StepHub(max_records=4)
    async with await client.watch_steps(timeout_s=DEADLINE_S) as watch:
        for _ in range(10):
            engine.publish_step(1)  # in one turn of the server's loop, so that nobody reads
        ids = [(await anext(watch)).micro_batch_id for _ in range(4)]
        assert (ids, watch.num_lost) == ([7, 8, 9, 10], 6)


async def test_closing_a_watch_frees_its_place(engine: EchoEngine, client: AsyncClient) -> None:
    watch = await client.watch_steps(timeout_s=DEADLINE_S)
    assert engine.steps.is_watched
    watch.close()
    with pytest.raises(RequestAbortedError):
        await anext(watch)
    await until(lambda: not engine.steps.is_watched)


async def test_too_many_watchers_are_refused(client: AsyncClient) -> None:
    watches = [await client.watch_steps(timeout_s=DEADLINE_S) for _ in range(MAX_WATCHES)]
    with pytest.raises(QueueFullError, match=str(MAX_WATCHES)):
        await client.watch_steps(timeout_s=DEADLINE_S)
    for watch in watches:
        watch.close()


async def test_an_unknown_field_is_refused(engine: EchoEngine) -> None:
    async with serving(engine) as address, grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.WatchStepsRequest.FromString(b"\xa0\x06\x01")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.WatchSteps(request, timeout=DEADLINE_S).read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "WatchStepsRequest"


async def test_there_is_nothing_to_watch_before_the_stages_are_connected() -> None:
    async with bound() as (_, _, address), AsyncClient(address) as client:
        with pytest.raises(UnavailableError, match="waits for its stages"):
            await client.watch_steps(timeout_s=DEADLINE_S)


async def test_a_coordinator_that_stops_ends_the_watch(engine: EchoEngine) -> None:
    async with bound() as server, AsyncClient(server.address) as client:
        await server.serve(engine)
        watch = await client.watch_steps(timeout_s=DEADLINE_S)
        await server.stop(grace_s=0)
        with pytest.raises(UnavailableError, match="shutting down"):
            await anext(watch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


def check_order(record: StepRecord) -> None:
    """Every instant of a step comes after the one before, through all stages."""
    visits = [instant for stage in record.stages for instant in (stage.sent_ns, stage.arrived_ns)]
    instants = [record.started_ns, record.scheduled_ns, *visits]
    instants += [record.sampling_ns, record.sampled_ns, record.decided_ns]
    instants += [record.emitting_ns, record.emitted_ns]
    assert instants == sorted(instants)
    for stage in record.stages:
        inside_ns = stage.queue_ns + stage.compute_ns + stage.serialize_ns
        assert 0 < stage.compute_ns < inside_ns <= stage.arrived_ns - stage.sent_ns


async def test_a_real_pipeline_tells_when_each_stage_had_each_micro_batch(model: Path) -> None:
    ranges = split_evenly(6, 3)
    async with running_engine(model, ranges, coordinator={"max_num_batched_tokens": 8}) as engine:
        catalog = Catalog()
        open_catalog(catalog, [engine])
        server = GenerationServer(
            catalog, Address("127.0.0.1", 0), max_model_len=64, max_num_waiting=4
        )
        address = await server.start()
        await server.serve()
        async with (
            AsyncClient(address) as client,
            await client.watch_steps(timeout_s=DEADLINE_S) as watch,
        ):
            await generate(engine, tuple(range(5, 17)), 4)
            records = [await anext(watch) for _ in range(5)]
            freeing = await anext(watch)
        await engine.wait_idle()
        await server.stop(grace_s=0)
    rows = [(record.num_prefill_tokens, record.num_decode_tokens) for record in records]
    assert rows == [(8, 0), (4, 0), (0, 1), (0, 1), (0, 1)]
    for record in records:
        assert (record.num_sequences, len(record.stages)) == (1, 3)
        check_order(record)
    assert (freeing.num_sequences, freeing.num_decode_tokens) == (0, 0)
