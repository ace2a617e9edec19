"""Real stage servers on real sockets, and the messages that go to them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import grpc
import numpy as np

from stage_server.core.config import StageConfig
from stage_server.core.engine import StageEngine
from stage_server.process.server import StageServer
from stage_server.wire.limits import message_limits
from stagecoach.contract.address import Address
from stagecoach.contract.dtypes import dtype_named
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.contract.status import LOST_STATUS, from_rpc_error, from_status
from stagecoach.security.tls_files import TlsFiles
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.contract.arithmetic_engine import FINGERPRINT, ArithmeticEngine, arithmetic_info
from tests.ended_peers import may_have_ended

ForwardCall = grpc.aio.StreamStreamCall[stage_pb2.ForwardRequest, stage_pb2.ForwardResponse]

DEADLINE_S = 90.0
FREE_PORT = Address("127.0.0.1", 0)


class RunningStage:
    """A stage server in this process and a channel to it."""

    def __init__(self, server: StageServer, address: str, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.address = address
        self.channel = channel
        self.stub = stage_pb2_grpc.StageServiceStub(channel)

    async def info(self) -> stage_pb2.GetInfoResponse:
        return await self.stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=DEADLINE_S)

    async def open(self, **changes: object) -> "OpenedStream":
        stream = OpenedStream(self.stub.Forward())
        await stream.send(opening(**changes))
        response = await stream.read()
        assert response.WhichOneof("payload") == "opened"
        return stream

    async def refusal(self, **changes: object) -> StagecoachError:
        """The error that a stream opened in this way ends with."""
        return await refusal_of(self.stub.Forward, opening(**changes))

    async def until_free(self) -> None:
        """Waits until every KV block is free."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                info = await self.info()
                if info.num_free_kv_blocks == info.num_kv_blocks:
                    return
                await asyncio.sleep(0.005)


class OpenedStream:
    """The coordinator's end of a Forward stream."""

    def __init__(self, call: ForwardCall) -> None:
        self.call = call

    async def send(self, request: stage_pb2.ForwardRequest) -> None:
        """Writes it; reading finds a stream that has ended before."""
        with may_have_ended():
            await self.call.write(request)

    async def read(self) -> stage_pb2.ForwardResponse:
        async with asyncio.timeout(DEADLINE_S):
            response = await self.call.read()
        if isinstance(response, stage_pb2.ForwardResponse):
            return response
        raise AssertionError(f"the stream ended: {await self.call.code()}")

    async def result(self) -> stage_pb2.MicroBatchResult:
        response = await self.read()
        assert response.WhichOneof("payload") == "result"
        return response.result

    async def run(self, batch: stage_pb2.MicroBatch) -> stage_pb2.MicroBatchResult:
        await self.send(stage_pb2.ForwardRequest(micro_batch=batch))
        return await self.result()

    async def hidden(self, batch: stage_pb2.MicroBatch) -> list[int]:
        """The first element of each row of hidden states that comes back."""
        result = await self.run(batch)
        assert not result.HasField("status"), result.status
        return first_column(result)

    async def failure(self, batch: stage_pb2.MicroBatch) -> StagecoachError:
        """The in-band error of a micro-batch."""
        result = await self.run(batch)
        assert result.HasField("status")
        assert result.micro_batch_id == batch.micro_batch_id
        return from_status(result.status)

    async def end_error(self) -> StagecoachError:
        """Reads on until the stream ends with an error, and returns it."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        raise AssertionError(f"the stream ended well: {await self.call.code()}")

    async def close(self) -> grpc.StatusCode:
        await self.call.done_writing()
        async with asyncio.timeout(DEADLINE_S):
            while await self.call.read() is not grpc.aio.EOF:
                pass
            return await self.call.code()


async def refusal_of(
    new_call: Callable[[], ForwardCall], request: stage_pb2.ForwardRequest
) -> StagecoachError:
    """The error that a call ends with whose first message is this.

    Calls again when the refusal was lost because it came while the message was written.
    """
    async with asyncio.timeout(DEADLINE_S):
        while True:
            stream = OpenedStream(new_call())
            await stream.send(request)
            error = await stream.end_error()
            if await stream.call.details() != LOST_STATUS:
                return error


def stage_config(**changes: object) -> StageConfig:
    values: dict[str, object] = {
        "model": "arithmetic",
        "layers": LayerRange(0, 2),
        "listen": FREE_PORT,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
    }
    return StageConfig(**(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def bound_stage(
    load: Callable[[], StageEngine],
    listen: Address = FREE_PORT,
    *,
    tls: TlsFiles | None = None,
) -> AsyncIterator[RunningStage]:
    """A server that is bound and has not loaded; drained at the end."""
    limits = message_limits(stage_config(), hidden_size=4, vocab_size=32)
    server = StageServer(listen, limits=limits, load=load, tls=tls)
    try:
        address = str(await server.start())
        async with grpc.aio.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1)]
        ) as channel:
            yield RunningStage(server, address, channel)
    finally:
        await server.stop(grace_s=5)


@asynccontextmanager
async def running_stage(
    engine: StageEngine | None = None,
    *,
    info: StageInfo | None = None,
    tls: TlsFiles | None = None,
) -> AsyncIterator[RunningStage]:
    """A server that serves an engine."""
    served = engine or ArithmeticEngine(info or arithmetic_info())
    async with bound_stage(lambda: served, tls=tls) as stage:
        await stage.server.load()
        yield stage


def opening(**changes: object) -> stage_pb2.ForwardRequest:
    """The first message of a stream to the stage that `arithmetic_info()` describes."""
    values: dict[str, object] = {
        "protocol_version": PROTOCOL_VERSION,
        "fingerprint": FINGERPRINT,
        "layers": stage_pb2.LayerRange(start=0, end=2),
        "coordinator_id": "alice",
        "epoch": 1,
    }
    message = stage_pb2.OpenStream(**(values | changes))  # type: ignore[arg-type]
    return stage_pb2.ForwardRequest(open=message)


def micro_batch(
    *slices: tuple[int, int, int], token_ids: Sequence[int] | None = None, micro_batch_id: int = 1
) -> stage_pb2.MicroBatch:
    """A micro-batch of (slot, start, number of tokens) with token ids 0, 1, 2, ... by default."""
    num_tokens = sum(piece[2] for piece in slices)
    ids = list(range(num_tokens)) if token_ids is None else list(token_ids)
    return stage_pb2.MicroBatch(
        micro_batch_id=micro_batch_id,
        slices=[
            stage_pb2.SequenceSlice(kv_slot=slot, start_position=start, num_tokens=num)
            for slot, start, num in slices
        ],
        token_ids=stage_pb2.TokenIds(ids=ids) if slices else None,
    )


def first_column(result: stage_pb2.MicroBatchResult) -> list[int]:
    message = result.hidden_states
    rows = np.frombuffer(message.data, dtype=np.float32).reshape(tuple(message.shape))
    assert message.dtype == dtype_named("float32")
    return [int(value) for value in rows[:, 0]]
