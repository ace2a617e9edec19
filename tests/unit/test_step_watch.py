"""The hub that hands records of steps to watchers, and what a record says."""

import asyncio
from dataclasses import fields

import pytest

from coordinator.core.step import ScheduledSlice, SchedulerOutput, StepOutput
from coordinator.core.step_record import step_record
from coordinator.observe.step_watch import CHUNK_RECORDS, MAX_WATCHES, StepHub, StepWatch
from stagecoach.contract.errors import QueueFullError, UnavailableError
from stagecoach.contract.step_record import StageVisit, StepInstants, StepRecord


def create_record(micro_batch_id: int = 0, started_ns: int = 100) -> StepRecord:
    return StepRecord(
        micro_batch_id=micro_batch_id,
        num_sequences=1,
        num_prefill_tokens=0,
        num_decode_tokens=1,
        started_ns=started_ns,
        scheduled_ns=110,
        stages=(StageVisit.of(120, 170, queue_ns=5, compute_ns=20, serialize_ns=3),),
        sampling_ns=180,
        sampled_ns=190,
        decided_ns=190,
        emitting_ns=190,
        emitted_ns=200,
    )


def publish(hub: StepHub, ids: range) -> None:
    for micro_batch_id in ids:
        hub.publish(create_record(micro_batch_id))


async def read_ids(watch: StepWatch) -> list[int]:
    return [record.micro_batch_id for record in (await anext(watch)).records]


def test_nobody_watches_until_someone_does_and_after_they_leave() -> None:
    hub = StepHub()
    assert not hub.is_watched
    watch = hub.watch(0)
    assert hub.is_watched
    watch.close()
    watch.close()
    assert not hub.is_watched


async def test_every_watcher_gets_every_record_once() -> None:
    hub = StepHub()
    first, second = hub.watch(0), hub.watch(0)
    publish(hub, range(3))
    assert await read_ids(first) == [0, 1, 2]
    publish(hub, range(3, 5))
    assert await read_ids(first) == [3, 4]
    assert await read_ids(second) == [0, 1, 2, 3, 4]


async def test_a_reader_waits_for_the_next_record() -> None:
    hub = StepHub()
    reading = asyncio.create_task(read_ids(hub.watch(0)))
    await asyncio.sleep(0)
    assert not reading.done()
    publish(hub, range(7, 8))
    assert await reading == [7]


async def test_a_slow_watcher_loses_the_oldest_records_and_is_told_how_many() -> None:
    hub = StepHub(max_records=4)
    slow, quick = hub.watch(0), hub.watch(0)
    publish(hub, range(3))
    assert await read_ids(quick) == [0, 1, 2]
    publish(hub, range(3, 10))
    lost = await anext(slow)
    assert ([record.micro_batch_id for record in lost.records], lost.num_lost) == ([6, 7, 8, 9], 6)
    assert (await anext(quick)).num_lost == 3
    publish(hub, range(10, 11))
    assert (await anext(slow)).num_lost == 0


async def test_chunks_are_bounded() -> None:
    hub = StepHub()
    watch = hub.watch(0)
    publish(hub, range(CHUNK_RECORDS + 1))
    assert await read_ids(watch) == list(range(CHUNK_RECORDS))
    assert await read_ids(watch) == [CHUNK_RECORDS]


async def test_a_step_that_began_before_the_watch_is_not_told() -> None:
    hub = StepHub()
    watch = hub.watch(100)
    hub.publish(create_record(1, started_ns=99))
    hub.publish(create_record(2, started_ns=100))
    assert await read_ids(watch) == [2]


async def test_the_end_comes_after_what_is_unread() -> None:
    hub = StepHub()
    watch = hub.watch(0)
    publish(hub, range(2))
    hub.end(UnavailableError("shutting down"))
    assert await read_ids(watch) == [0, 1]
    with pytest.raises(UnavailableError, match="shutting down"):
        await anext(watch)


def test_after_the_end_nobody_may_watch() -> None:
    hub = StepHub()
    hub.end(UnavailableError("shutting down"))
    with pytest.raises(UnavailableError, match="shutting down"):
        hub.watch(0)
    assert not hub.is_watched


def test_watchers_are_bounded() -> None:
    hub = StepHub()
    watches = [hub.watch(0) for _ in range(MAX_WATCHES)]
    with pytest.raises(QueueFullError, match=str(MAX_WATCHES)):
        hub.watch(0)
    watches[0].close()
    hub.watch(0)


def create_slice(num_tokens: int, *, num_sampled_rows: int) -> ScheduledSlice:
    return ScheduledSlice("r", 0, 0, tuple(range(num_tokens)), num_sampled_rows)


def test_a_record_counts_rows_and_leaves_the_coordinators_serialization_out_of_the_span() -> None:
    output = SchedulerOutput(
        micro_batch_id=9,
        slices=(
            create_slice(1, num_sampled_rows=1),
            create_slice(1, num_sampled_rows=1),
            create_slice(5, num_sampled_rows=1),
            create_slice(1, num_sampled_rows=0),
        ),
        slot_ops=(),
    )
    visit = StageVisit.of(200, 300, queue_ns=10, compute_ns=40, serialize_ns=6)
    step = StepOutput(
        micro_batch_id=9,
        logits=(),
        visits=(visit,),
        stage_timings=(visit.timings.with_serialization(1000),),
    )
    names = [field.name for field in fields(StepInstants)]
    values = dict(zip(names, range(len(names)), strict=True))
    record = step_record(output, step, StepInstants(**values))
    assert (record.num_sequences, record.num_decode_tokens, record.num_prefill_tokens) == (4, 2, 6)
    (found,) = record.stages
    assert (found.sent_ns, found.arrived_ns, found.wire_ns) == (200, 300, 44)
    assert (found.queue_ns, found.compute_ns, found.serialize_ns) == (10, 40, 6)
    assert {name: getattr(record, name) for name in names} == values
