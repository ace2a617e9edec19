"""A Forward stream: opening, order, in-band faults, the lease, and every way of ending."""

import asyncio
import socket
import threading

import grpc
import pytest

from stage_server.core.batch import ForwardBatch
from stage_server.wire.stream import MAX_IN_FLIGHT
from stagecoach.contract.errors import (
    IncompatibleError,
    InternalError,
    InvalidArgumentError,
    KvFullError,
    StagecoachError,
    StaleStateError,
    UnavailableError,
)
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from stagecoach.version import __version__
from tests.contract.arithmetic_engine import ArithmeticEngine, arithmetic_info, hash_sequence
from tests.contract.stage_builders import (
    DEADLINE_S,
    OpenedStream,
    RunningStage,
    micro_batch,
    opening,
    running_stage,
)
from tests.ended_peers import may_have_ended


class Gate:
    """Holds forwards on the model thread until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, _batch: ForwardBatch) -> None:
        self.entered.release()
        assert self._open.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=DEADLINE_S)


async def test_get_info_describes_the_stage() -> None:
    async with running_stage() as stage:
        info = await stage.info()
        assert (info.layers.start, info.layers.end, info.num_model_layers) == (0, 2, 6)
        assert (info.kv_block_size, info.num_kv_blocks, info.num_free_kv_blocks) == (4, 64, 64)
        assert (info.max_num_seqs, info.max_num_batched_tokens, info.max_model_len) == (8, 16, 32)
        assert info.version == __version__


async def test_micro_batches_extend_their_sequences() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        assert await stream.hidden(micro_batch((0, 0, 2), token_ids=[5, 6])) == [
            hash_sequence([5]),
            hash_sequence([5, 6]),
        ]
        assert await stream.hidden(micro_batch((1, 0, 1), (0, 2, 1), token_ids=[9, 7])) == [
            hash_sequence([9]),
            hash_sequence([5, 6, 7]),
        ]


async def test_a_step_is_safe_to_send_again() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        await stream.run(micro_batch((0, 0, 3)))
        step = micro_batch((0, 3, 1), token_ids=[8])
        assert await stream.hidden(step) == await stream.hidden(step)


async def test_timings_name_queue_compute_and_serialize() -> None:
    gate = Gate()
    async with running_stage(ArithmeticEngine(arithmetic_info(), gate)) as stage:
        stream = await stage.open()
        for i in range(2):
            await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((i, 0, 1))))
        await gate.until_entered()
        await asyncio.sleep(0.05)
        gate.open()
        first, second = (await stream.result()).timings, (await stream.result()).timings
        assert first.compute_ns > 40_000_000
        assert second.queue_ns > 30_000_000
        assert 0 < second.serialize_ns < 1_000_000_000


async def test_results_come_in_order_with_faults_among_them() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        batches = [
            micro_batch((i % 8, 0 if i % 3 else 99, 1), micro_batch_id=1000 - i) for i in range(30)
        ]
        for batch in batches:
            await stream.send(stage_pb2.ForwardRequest(micro_batch=batch))
        results = [await stream.result() for _ in batches]
        assert [r.micro_batch_id for r in results] == [b.micro_batch_id for b in batches]
        assert [r.HasField("status") for r in results] == [i % 3 == 0 for i in range(30)]


async def test_the_reader_goes_on_while_the_model_is_busy_up_to_a_bound() -> None:
    gate = Gate()
    engine = ArithmeticEngine(arithmetic_info(), gate)
    async with running_stage(engine) as stage:
        stream = await stage.open()
        bad = micro_batch((99, 0, 1))
        await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        for _ in range(3 * MAX_IN_FLIGHT):
            await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        await stream.send(stage_pb2.ForwardRequest(micro_batch=bad))
        await gate.until_entered()
        assert (await stage.info()).num_model_layers == 6  # answers meanwhile
        assert engine.num_forwards == 1
        gate.open()
        results = [await stream.result() for _ in range(3 * MAX_IN_FLIGHT + 2)]
        assert [r.HasField("status") for r in results] == [False] * (3 * MAX_IN_FLIGHT + 1) + [True]


async def test_the_engine_is_called_from_one_thread_that_is_not_the_event_loops() -> None:
    engine = ArithmeticEngine(arithmetic_info())
    async with running_stage(engine) as stage:
        stream = await stage.open()
        await stream.run(micro_batch((0, 0, 1)))
        await stream.close()
        await stage.until_free()
    assert engine.warmed_up
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


async def test_a_gap_is_stale_state_in_band_and_changes_nothing() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        await stream.run(micro_batch((0, 0, 2)))
        assert isinstance(await stream.failure(micro_batch((0, 3, 1))), StaleStateError)
        expected = (await stream.hidden(micro_batch((1, 0, 3))))[2]
        assert await stream.hidden(micro_batch((0, 2, 1), token_ids=[2])) == [expected]


async def test_full_kv_is_in_band_and_changes_nothing() -> None:
    async with running_stage(info=arithmetic_info(num_kv_blocks=2)) as stage:
        stream = await stage.open()
        await stream.run(micro_batch((0, 0, 4)))
        assert isinstance(await stream.failure(micro_batch((1, 0, 5))), KvFullError)
        assert (await stage.info()).num_free_kv_blocks == 1
        assert len(await stream.hidden(micro_batch((1, 0, 4)))) == 4


async def test_an_exception_in_a_forward_is_logged_hidden_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(batch: ForwardBatch) -> None:
        if batch.slices[0].kv_slot == 5:
            raise RuntimeError("secret of the server")

    async with running_stage(ArithmeticEngine(arithmetic_info(), explode)) as stage:
        stream = await stage.open()
        error = await stream.failure(micro_batch((5, 0, 1)))
        assert isinstance(error, InternalError)
        assert "secret" not in error.message
        assert "secret of the server" in caplog.text
        assert len(await stream.hidden(micro_batch((4, 0, 1)))) == 1


MISMATCHES: dict[str, tuple[dict[str, object], type[StagecoachError], tuple[str, ...]]] = {
    "version": ({"protocol_version": 99}, IncompatibleError, ("99", "1")),
    "fingerprint": ({"fingerprint": "abc"}, IncompatibleError, ("abc", "ffff")),
    "layers": (
        {"layers": stage_pb2.LayerRange(start=0, end=3)},
        IncompatibleError,
        ("0:3", "0:2"),
    ),
    "no layers": ({"layers": stage_pb2.LayerRange()}, IncompatibleError, ("0:0", "0:2")),
    "no coordinator": ({"coordinator_id": ""}, InvalidArgumentError, ("coordinator_id",)),
    "long coordinator": ({"coordinator_id": "x" * 257}, InvalidArgumentError, ("257", "256")),
}


@pytest.mark.parametrize("case", MISMATCHES)
async def test_a_stream_meant_for_another_stage_is_refused_with_both_values(case: str) -> None:
    changes, error_type, values = MISMATCHES[case]
    async with running_stage() as stage:
        error = await stage.refusal(**changes)
        assert type(error) is error_type
        assert all(value in error.message for value in values)
        await stage.open()


VIOLATIONS = {
    "first is a micro-batch": [stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1)))],
    "first is empty": [stage_pb2.ForwardRequest()],
    "second open": [opening(), opening(epoch=2)],
    "empty later": [opening(), stage_pb2.ForwardRequest()],
}


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_breaking_the_protocol_ends_the_stream(case: str) -> None:
    async with running_stage() as stage:
        stream = OpenedStream(stage.stub.Forward())
        for request in VIOLATIONS[case]:
            await stream.send(request)
        error = await stream.end_error()
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "payload"


async def test_closing_before_the_first_message_is_a_violation() -> None:
    async with running_stage() as stage:
        call = stage.stub.Forward()
        await call.done_writing()
        assert isinstance(await OpenedStream(call).end_error(), InvalidArgumentError)


async def test_a_write_to_a_stream_that_has_ended_is_never_taken_for_a_bug() -> None:
    async with running_stage() as stage:
        for _ in range(20):
            call = stage.stub.Forward()
            with may_have_ended():
                while True:
                    await call.write(stage_pb2.ForwardRequest())
            error = await OpenedStream(call).end_error()
            assert isinstance(error, InvalidArgumentError | UnavailableError)


async def test_what_came_before_a_violation_is_answered() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        await stream.send(stage_pb2.ForwardRequest())
        assert not (await stream.result()).HasField("status")
        assert isinstance(await stream.end_error(), InvalidArgumentError)


async def test_an_open_that_does_not_come_passes_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stage_server.process.server._MESSAGE_TIMEOUT_S", 0.05)
    async with running_stage() as stage:
        call = stage.stub.Forward()
        error = await OpenedStream(call).end_error()
        assert error.reason == "DEADLINE_EXCEEDED"


async def test_half_closing_answers_everything_and_ends_well() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        for i in range(20):
            await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((i % 8, 0, 1))))
        await stream.call.done_writing()
        results = [await stream.result() for _ in range(20)]
        assert len(results) == 20
        assert await stream.call.code() is grpc.StatusCode.OK


async def fill(stage: RunningStage, stream: OpenedStream) -> None:
    await stream.run(micro_batch((0, 0, 8), (1, 0, 8)))
    assert (await stage.info()).num_free_kv_blocks == 60


@pytest.mark.parametrize("ending", ["close", "cancel", "drop channel", "violation"])
async def test_every_ending_frees_the_slots_and_the_next_coordinator_is_served(
    ending: str,
) -> None:
    async with running_stage() as stage:
        other = grpc.aio.insecure_channel(stage.address)
        stub = stage_pb2_grpc.StageServiceStub(other)
        stream = OpenedStream(stub.Forward())
        await stream.send(opening())
        await stream.read()
        await fill(stage, stream)

        if ending == "close":
            await stream.close()
        elif ending == "cancel":
            stream.call.cancel()
        elif ending == "violation":
            await stream.send(stage_pb2.ForwardRequest())
            await stream.end_error()
        await other.close()

        await stage.until_free()
        fresh = await stage.open(coordinator_id="bob")
        assert isinstance(await fresh.failure(micro_batch((0, 1, 1))), StaleStateError)
        assert await fresh.hidden(micro_batch((0, 0, 1), token_ids=[3])) == [hash_sequence([3])]


async def test_another_coordinator_is_refused_by_the_name_of_the_holder() -> None:
    async with running_stage() as stage:
        stream = await stage.open(coordinator_id="alice")
        error = await stage.refusal(coordinator_id="bob", epoch=99)
        assert isinstance(error, IncompatibleError)
        assert "alice" in error.message
        assert len(await stream.hidden(micro_batch((0, 0, 1)))) == 1


async def test_a_higher_epoch_takes_over_with_empty_slots() -> None:
    async with running_stage() as stage:
        old = await stage.open(epoch=1)
        await fill(stage, old)
        new = await stage.open(epoch=2)
        assert (await stage.info()).num_free_kv_blocks == 64
        assert isinstance(await old.end_error(), StaleStateError)
        assert isinstance(await new.failure(micro_batch((0, 1, 1))), StaleStateError)
        assert await new.hidden(micro_batch((0, 0, 1), token_ids=[3])) == [hash_sequence([3])]


@pytest.mark.parametrize("epoch", [4, 5])
@pytest.mark.parametrize("ended", [False, True])
async def test_an_equal_or_lower_epoch_is_stale_also_after_the_stream(
    epoch: int, ended: bool
) -> None:
    async with running_stage() as stage:
        stream = await stage.open(epoch=5)
        if ended:
            await stream.close()
        error = await stage.refusal(epoch=epoch)
        assert isinstance(error, StaleStateError)
        assert "5" in error.message
        await stage.open(epoch=6)


async def test_what_a_fenced_stream_had_queued_never_touches_the_kv() -> None:
    gate = Gate()
    engine = ArithmeticEngine(arithmetic_info(), gate)
    async with running_stage(engine) as stage:
        old = await stage.open(epoch=1)
        for i in range(4):
            await old.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((i, 0, 4))))
        await gate.until_entered()

        opening_new = asyncio.create_task(stage.open(epoch=2))
        assert isinstance(await old.end_error(), StaleStateError)
        assert not opening_new.done()  # the old forward still runs
        gate.open()
        new = await opening_new

        assert engine.num_forwards == 1
        assert (await stage.info()).num_free_kv_blocks == 64
        assert isinstance(await new.failure(micro_batch((0, 4, 1))), StaleStateError)


async def test_of_many_takeovers_while_the_model_is_busy_the_latest_holds_the_stage() -> None:
    gate = Gate()
    async with running_stage(ArithmeticEngine(arithmetic_info(), gate)) as stage:
        old = await stage.open(epoch=1)
        await old.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 4))))
        await gate.until_entered()
        waiting = []
        for epoch in range(2, 8):
            stream = OpenedStream(stage.stub.Forward())
            await stream.send(opening(epoch=epoch))
            waiting.append(stream)
            await asyncio.sleep(0.01)
        gate.open()
        ends = await asyncio.gather(*(stream.end_error() for stream in waiting[:-1]))
        assert {type(error) for error in ends} == {StaleStateError}
        assert (await waiting[-1].read()).opened.epoch == 7
        assert len(await waiting[-1].hidden(micro_batch((0, 0, 1)))) == 1


async def test_a_cancelled_streams_queue_is_not_computed() -> None:
    gate = Gate()
    engine = ArithmeticEngine(arithmetic_info(), gate)
    async with running_stage(engine) as stage:
        stream = await stage.open()
        for i in range(MAX_IN_FLIGHT):
            await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((i, 0, 1))))
        await gate.until_entered()
        stream.call.cancel()
        await asyncio.sleep(0.05)
        gate.open()
        await stage.until_free()
        assert engine.num_forwards == 1


async def test_a_message_over_the_limit_is_typed_and_the_server_lives() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        await stream.run(micro_batch((0, 0, 2)))
        too_long = micro_batch((0, 0, 1), token_ids=[2**31] * 800_000)
        assert too_long.ByteSize() > 2**20
        await stream.send(stage_pb2.ForwardRequest(micro_batch=too_long))
        await stream.end_error()
        assert await stream.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stage.until_free()
        fresh = await stage.open(epoch=2)
        assert len(await fresh.hidden(micro_batch((0, 0, 2)))) == 2


async def test_garbage_on_the_port_and_dropped_connections_do_no_harm() -> None:
    async with running_stage() as stage:
        stream = await stage.open()
        before = await stream.hidden(micro_batch((0, 0, 3)))
        host, _, port = stage.address.rpartition(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 64,
            b"PRI * HTTP/2.0\r\n",
            b"",
        ):
            with (
                socket.create_connection((host, int(port)), timeout=5) as connection,
                may_have_ended(),
            ):
                connection.sendall(garbage)
        idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(50)]
        for connection in idle:
            connection.close()
        assert await stream.hidden(micro_batch((0, 0, 3))) == before


async def test_hundreds_of_stream_resets_leave_nothing_behind() -> None:
    async with running_stage() as stage:
        for epoch in range(1, 201):
            call = stage.stub.Forward()
            with may_have_ended():
                await call.write(opening(epoch=epoch))
            call.cancel()
        await stage.until_free()
        stream = await stage.open(epoch=1000)
        assert len(await stream.hidden(micro_batch((0, 0, 1)))) == 1


async def test_draining_answers_what_was_read_then_ends_the_stream() -> None:
    gate = Gate()
    async with running_stage(ArithmeticEngine(arithmetic_info(), gate)) as stage:
        stream = await stage.open()
        await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        await gate.until_entered()
        stopping = asyncio.create_task(stage.server.stop(grace_s=DEADLINE_S))
        await asyncio.sleep(0.05)
        refused: StagecoachError = await stage.refusal(coordinator_id="alice", epoch=2)
        assert isinstance(refused, UnavailableError)
        gate.open()
        assert not (await stream.result()).HasField("status")
        assert isinstance(await stream.end_error(), UnavailableError)
        assert await stopping


async def test_draining_ends_after_its_grace_when_a_forward_hangs() -> None:
    gate = Gate()
    async with running_stage(ArithmeticEngine(arithmetic_info(), gate)) as stage:
        stream = await stage.open()
        await stream.send(stage_pb2.ForwardRequest(micro_batch=micro_batch((0, 0, 1))))
        await gate.until_entered()
        assert not await stage.server.stop(grace_s=0.1)
        assert isinstance(await stream.end_error(), StagecoachError)
        gate.open()
