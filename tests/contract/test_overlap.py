"""A stage that launches the next micro-batch while its device computes one."""

import asyncio
import time
from collections.abc import Callable

import pytest

from stage_server.core.engine import DeviceLostError
from stagecoach.contract.errors import (
    DeviceMemoryError,
    InternalError,
    StaleStateError,
    UnavailableError,
)
from stagecoach.contract.status import from_status
from stagecoach.v1 import stage_pb2
from tests.contract.arithmetic_engine import hash_sequence
from tests.contract.deferring_engine import DeferringEngine
from tests.contract.stage_builders import (
    DEADLINE_S,
    OpenedStream,
    RunningStage,
    first_column,
    micro_batch,
    running_stage,
)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def send(stream: OpenedStream, *batches: stage_pb2.MicroBatch) -> None:
    for batch in batches:
        await stream.send(stage_pb2.ForwardRequest(micro_batch=batch))


async def until_queued(stage: RunningStage, count: int) -> None:
    """Until so many jobs wait or are begun."""
    await until(lambda: stage.server._executor._num_queued == count)


async def test_the_next_is_launched_before_the_first_is_done_and_no_third() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, *(micro_batch((0, i, 1), token_ids=[5 + i]) for i in range(4)))
        await until_queued(stage, 4)
        await until(lambda: len(engine.device.log) == 2)
        expected = []
        for i in range(4):
            engine.device.complete(i + 1)
            expected.append(hash_sequence(list(range(5, 6 + i))))
            assert first_column(await stream.result()) == expected[-1:]
        assert engine.device.log == [
            *("launch 0", "launch 1", "finish 0", "launch 2", "finish 1", "launch 3"),
            *("finish 2", "finish 3"),
        ]


async def test_one_that_comes_while_the_thread_waits_is_launched_at_once() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, micro_batch((0, 0, 1)))
        await until(lambda: engine.device.log == ["launch 0"])
        await send(stream, micro_batch((1, 0, 1)))
        await until(lambda: engine.device.log == ["launch 0", "launch 1"])
        engine.device.complete(2)
        for _ in range(2):
            assert not (await stream.result()).HasField("status")


async def test_a_lone_one_is_answered_as_soon_as_it_is_done() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        for i in range(3):
            await send(stream, micro_batch((0, i, 1)))
            engine.device.complete(i + 1)
            assert not (await stream.result()).HasField("status")


@pytest.mark.parametrize("error", [DeviceMemoryError("no memory"), RuntimeError("a bug")])
async def test_what_fails_at_the_end_is_its_own_micro_batch(error: Exception) -> None:
    engine = DeferringEngine()
    engine.device.errors[0] = error
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, micro_batch((0, 0, 1)), micro_batch((1, 0, 1), micro_batch_id=2))
        engine.device.complete(2)
        failed, computed = await stream.result(), await stream.result()
        expected = error if isinstance(error, DeviceMemoryError) else InternalError("")
        assert type(from_status(failed.status)) is type(expected)
        assert (failed.micro_batch_id, computed.micro_batch_id) == (1, 2)
        assert first_column(computed) == [hash_sequence([0])]


async def test_one_that_is_refused_is_answered_behind_the_one_that_is_computed() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, micro_batch((0, 0, 1)), micro_batch((1, 9, 1), micro_batch_id=2))
        await until(lambda: engine.num_forwards == 2)  # the second is refused by then
        engine.device.complete(1)
        computed, refused = await stream.result(), await stream.result()
        assert not computed.HasField("status")
        assert isinstance(from_status(refused.status), StaleStateError)
        assert refused.micro_batch_id == 2


async def test_a_takeover_waits_for_what_the_device_computes() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        old = await stage.open(epoch=1)
        await send(old, *(micro_batch((i, 0, 4)) for i in range(3)))
        await until_queued(stage, 3)
        await until(lambda: len(engine.device.log) == 2)
        opening = asyncio.create_task(stage.open(epoch=2))
        assert isinstance(await old.end_error(), StaleStateError)
        engine.device.complete(1)
        await until(lambda: "finish 0" in engine.device.log)
        assert not opening.done()
        engine.device.complete(2)
        new = await opening
        # What was launched ends, what was queued is never launched.
        assert engine.device.log == ["launch 0", "launch 1", "finish 0", "finish 1", "free"]
        assert (await stage.info()).num_free_kv_blocks == 64
        engine.device.complete(9)
        assert isinstance(await new.failure(micro_batch((0, 4, 1))), StaleStateError)
        assert len(await new.hidden(micro_batch((0, 0, 1)))) == 1


async def test_a_device_that_is_lost_ends_the_stream() -> None:
    engine = DeferringEngine()
    engine.device.errors[0] = DeviceLostError("gone")
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, micro_batch((0, 0, 1)), micro_batch((1, 0, 1)))
        engine.device.complete(2)
        assert isinstance(await stream.end_error(), UnavailableError)
        error = await asyncio.wait_for(stage.server.watch(hang_timeout_s=60), DEADLINE_S)
        assert "the device is lost: gone" in error.message


async def test_no_time_of_the_device_counts_for_two() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        started_ns = time.perf_counter_ns()
        await send(stream, *(micro_batch((i, 0, 1)) for i in range(2)))
        await until(lambda: len(engine.device.log) == 2)
        timings = []
        for i in range(2):
            await asyncio.sleep(0.05)
            engine.device.complete(i + 1)
            timings.append((await stream.result()).timings)
        elapsed_ns = time.perf_counter_ns() - started_ns
        first, second = timings
        assert min(first.compute_ns, second.compute_ns) > 40_000_000
        assert first.compute_ns + second.compute_ns < elapsed_ns
        assert second.queue_ns > 40_000_000
        assert second.queue_ns + second.compute_ns + second.serialize_ns < elapsed_ns


async def test_draining_answers_what_the_device_computes() -> None:
    engine = DeferringEngine()
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await send(stream, *(micro_batch((i, 0, 1)) for i in range(2)))
        await until(lambda: len(engine.device.log) == 2)
        stopping = asyncio.create_task(stage.server.stop(grace_s=DEADLINE_S))
        engine.device.complete(2)
        for _ in range(2):
            assert not (await stream.result()).HasField("status")
        assert isinstance(await stream.end_error(), UnavailableError)
        assert await stopping
