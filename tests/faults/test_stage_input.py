"""F29, B9, B10 and B12: what a broken or hostile peer may send to a stage, and what it answers.

The stage is a process of its own without a coordinator. Whatever comes, the answer is a typed
status, the process lives, and a canary is bit-identical before and after.
"""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecoach.contract.errors import (
    IncompatibleError,
    InvalidArgumentError,
    StagecoachError,
    StaleStateError,
)
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.ended_peers import may_have_ended
from tests.faults.malformed import malformed_frame
from tests.faults.oracle import check_ended, check_error
from tests.faults.server_processes import ServerProcess
from tests.faults.stage_wire import (
    HIDDEN_SIZE,
    MAX_NUM_SEQS,
    StageWire,
    canary,
    failure,
    logits_bytes,
    micro_batch,
    start_stage,
)
from tests.faults.waiting import eventually

NUM_SEEDS = 400
NUM_SLOW_FRAMES = 100_000
NUM_RESETS = 2000
NUM_IDLE = 1000
GROWTH_BYTES = 48 << 20
NUM_GROWN_FDS = 6


@pytest.fixture(scope="module")
def stage(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["LoneStage"]:
    process = start_stage(model, tmp_path_factory.mktemp("stage"))
    try:
        stage = LoneStage(process, str(process.ready_line()["address"]))
        yield stage
    finally:
        process.close()
    check_ended([process.pid], [stage.address])


@pytest.fixture
async def wire(stage: "LoneStage") -> AsyncIterator[StageWire]:
    """A connection; the test must leave the stage as it was."""
    async with StageWire.connected(stage.address) as wire:
        before, expected = stage.process.footprint(), await canary(wire)
        yield wire
        await wire.close()
        assert await canary(wire) == expected
        assert stage.process.returncode is None
        await wire.close()

        def is_back() -> bool:
            now = stage.process.footprint()
            return (
                now.num_fds <= before.num_fds + NUM_GROWN_FDS
                and now.rss_bytes <= before.rss_bytes + GROWTH_BYTES
                and now.num_tasks <= before.num_tasks
            )

        await eventually(is_back, within_s=20, what=f"back to {before}", every_s=0.2)
        assert "Traceback" not in stage.process.log


class LoneStage:
    """The process and its address."""

    def __init__(self, process: ServerProcess, address: str) -> None:
        self.process = process
        self.address = address


def message(change: Callable[[stage_pb2.MicroBatch], None]) -> bytes:
    """A valid prefill of four tokens, changed."""
    request = micro_batch((0, 0, 4))
    change(request.micro_batch)
    return request.SerializeToString()


def with_shape(*shape: int) -> Callable[[stage_pb2.MicroBatch], None]:
    def change(batch: stage_pb2.MicroBatch) -> None:
        batch.hidden_states.ClearField("shape")
        batch.hidden_states.shape.extend(shape)

    return change


def with_data(num_bytes: int) -> Callable[[stage_pb2.MicroBatch], None]:
    def change(batch: stage_pb2.MicroBatch) -> None:
        batch.hidden_states.data = bytes(num_bytes)

    return change


def with_num_tokens(num_tokens: int) -> Callable[[stage_pb2.MicroBatch], None]:
    def change(batch: stage_pb2.MicroBatch) -> None:
        batch.slices[0].num_tokens = num_tokens

    return change


def with_dtype(dtype: int) -> Callable[[stage_pb2.MicroBatch], None]:
    def change(batch: stage_pb2.MicroBatch) -> None:
        batch.hidden_states.dtype = dtype  # type: ignore[assignment]

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (with_data(4 * HIDDEN_SIZE * 4 - 1), "hidden_states"),
        (with_data(4 * HIDDEN_SIZE * 4 + 1), "hidden_states"),
        (with_data(0), "hidden_states"),
        (with_shape(4, HIDDEN_SIZE + 1), "hidden_states"),
        (with_shape(5, HIDDEN_SIZE), "hidden_states"),
        (with_shape(4 * HIDDEN_SIZE), "hidden_states"),
        (with_shape(2**32 - 1, 2**32 - 1, 2**32 - 1), "hidden_states"),
        (with_dtype(2), "hidden_states"),
        (with_dtype(99), "hidden_states"),
        (with_num_tokens(0), "slices[0].num_tokens"),
        (with_num_tokens(2**32 - 1), "slices[0]"),
        (lambda batch: batch.ClearField("hidden_states"), "inputs"),
    ],
)
async def test_b9_a_frame_that_does_not_fit_its_own_words_is_refused_by_field(
    wire: StageWire, change: Callable[[stage_pb2.MicroBatch], None], field: str
) -> None:
    error = failure(await wire.answer(message(change)))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    check_error(error)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"fingerprint": "0" * 64}, IncompatibleError),
        ({"fingerprint": "x" * 1_000_000}, IncompatibleError),
        ({"layers": stage_pb2.LayerRange(start=0, end=6)}, IncompatibleError),
        ({"layers": stage_pb2.LayerRange(start=2**32 - 1, end=0)}, IncompatibleError),
        ({"protocol_version": 99}, IncompatibleError),
        ({"epoch": 0}, StaleStateError),
        ({"coordinator_id": ""}, InvalidArgumentError),
        ({"coordinator_id": "c" * 100_000}, InvalidArgumentError),
    ],
)
async def test_b9_an_opening_of_another_model_range_or_epoch_is_refused(
    wire: StageWire, changes: dict[str, object], kind: type[StagecoachError]
) -> None:
    error = failure(await wire.first_answer(wire.opening(**changes)))
    assert type(error) is kind
    check_error(error)
    assert len(error.message) < 2000


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=st.booleans(), data=st.binary(max_size=300))
def test_b9_random_bytes_are_answered_with_a_typed_status(
    stage: LoneStage, *, first: bool, data: bytes
) -> None:
    async def send() -> None:
        async with StageWire.connected(stage.address) as wire:
            answer = await (wire.first_answer if first else wire.answer)(data)
            if not isinstance(answer, stage_pb2.MicroBatchResult) or answer.HasField("status"):
                check_error(failure(answer))

    asyncio.run(send())


async def test_b9_malformed_frames_are_refused_typed_one_after_another(wire: StageWire) -> None:
    assert await send_malformed(wire, range(NUM_SEEDS)) > NUM_SEEDS // 2


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_b9_a_hundred_thousand_malformed_frames_leave_no_trace(wire: StageWire) -> None:
    num_refused = await send_malformed(wire, range(NUM_SLOW_FRAMES))
    print(f"{NUM_SLOW_FRAMES} malformed frames: {num_refused} refused, each with a typed status")
    assert num_refused > NUM_SLOW_FRAMES // 2


async def test_b10_a_message_over_the_limit_is_refused(wire: StageWire) -> None:
    request = micro_batch((0, 0, 4))
    request.micro_batch.hidden_states.data = bytes(64 << 20)
    error = failure(await wire.answer(request.SerializeToString()))
    assert isinstance(error, InvalidArgumentError)
    assert "larger" in error.message
    check_error(error)


async def test_b12_raw_garbage_on_the_port_disturbs_nobody(
    stage: LoneStage, wire: StageWire
) -> None:
    host, _, port = stage.address.rpartition(":")
    chance = random.Random(0)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for index in range(200):
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            start = preface if index % 2 else b""
            with may_have_ended():
                peer.sendall(start + chance.randbytes(chance.randrange(2000)))
    assert logits_bytes(await wire.answer(micro_batch((0, 0, 3)).SerializeToString()))


async def test_b12_thousands_of_stream_resets_leave_nothing_behind(wire: StageWire) -> None:
    await wire.close()  # or it would be fenced by those that follow
    for index in range(NUM_RESETS):
        reset = wire.new_call()
        if index % 2:
            with may_have_ended():  # the stage refuses an epoch that a later call has overtaken
                await reset.write(wire.opening())
        reset.cancel()
        if index % 50 == 0:
            await asyncio.sleep(0)
    await eventually_free(wire)


async def test_b12_a_thousand_idle_connections_leave_the_stage_serving(
    stage: LoneStage, wire: StageWire
) -> None:
    host, _, port = stage.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(NUM_IDLE):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert logits_bytes(await wire.answer(micro_batch((0, 0, 3)).SerializeToString()))
        assert len(os.listdir(f"/proc/{stage.process.pid}/fd")) > NUM_IDLE // 2


async def test_f29_a_step_that_comes_twice_is_answered_the_same(wire: StageWire) -> None:
    prefill = micro_batch((0, 0, 10)).SerializeToString()
    step = micro_batch((0, 10, 1)).SerializeToString()
    await wire.answer(prefill)
    first = logits_bytes(await wire.answer(step))
    assert logits_bytes(await wire.answer(step)) == first


async def test_f29_a_late_or_out_of_order_step_and_a_gap_change_nothing(wire: StageWire) -> None:
    await wire.answer(micro_batch((0, 0, 10)).SerializeToString())
    expected = logits_bytes(await wire.answer(micro_batch((0, 10, 1)).SerializeToString()))
    for slot, start in ((0, 12), (0, 100), (1, 1)):  # a gap, a wide one, a slot that holds nothing
        error = failure(await wire.answer(micro_batch((slot, start, 1)).SerializeToString()))
        assert isinstance(error, StaleStateError)
        check_error(error)
    unknown = failure(await wire.answer(micro_batch((MAX_NUM_SEQS, 0, 1)).SerializeToString()))
    assert isinstance(unknown, InvalidArgumentError)
    again = micro_batch((0, 10, 1)).SerializeToString()
    assert logits_bytes(await wire.answer(again)) == expected


async def test_f29_a_slot_of_a_stream_that_ended_is_unknown_to_the_next(wire: StageWire) -> None:
    await wire.answer(micro_batch((0, 0, 10)).SerializeToString())
    await wire.close()
    error = failure(await wire.answer(micro_batch((0, 10, 1)).SerializeToString()))
    assert isinstance(error, StaleStateError)


async def send_malformed(wire: StageWire, seeds: range) -> int:
    """Sends a frame for each seed; returns how many were refused, each with a typed status."""
    num_refused = 0
    for seed in seeds:
        answer = await wire.answer(malformed_frame(seed))
        if isinstance(answer, StagecoachError) or answer.HasField("status"):
            num_refused += 1
            check_error(failure(answer))
    return num_refused


async def eventually_free(wire: StageWire) -> None:
    """Waits until every block is free."""

    stub = stage_pb2_grpc.StageServiceStub(wire.channel)

    async def is_free() -> bool:
        info = await stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=10)
        return info.num_free_kv_blocks == info.num_kv_blocks

    await eventually(is_free, within_s=20, what="every block is free")
