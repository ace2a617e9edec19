"""One stage process without a coordinator, and a peer that sends it whatever bytes it likes."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import grpc.aio
import numpy as np

from stagecoach.contract.dtypes import dtype_named
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.status import from_ending, from_status
from stagecoach.v1 import stage_pb2, stage_pb2_grpc
from tests.ended_peers import may_have_ended
from tests.faults.server_processes import ServerProcess

LAYERS = (2, 6)
"""Of a stage that takes hidden states and answers with logits."""
HIDDEN_SIZE = 48
MAX_NUM_SEQS = 8
MAX_NUM_BATCHED_TOKENS = 64
ANSWER_S = 90.0

Answer = stage_pb2.MicroBatchResult | StagecoachError
"""A result, whose status says what was wrong with the micro-batch, or the error that ended the
stream."""

_FORWARD = "/stagecoach.v1.StageService/Forward"


def start_stage(model: Path, folder: Path) -> ServerProcess:
    """Starts the last stage of two."""
    arguments = [
        *("--model", str(model), "--layers", "{}:{}".format(*LAYERS), "--listen", "127.0.0.1:0"),
        *("--kv-memory", "1MiB", "--threads", "1", "--max-num-seqs", str(MAX_NUM_SEQS)),
        *("--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS)),
    ]
    return ServerProcess("stage_server", arguments, folder=folder)


class StageWire:
    """Speaks to a stage in bytes; opens a stream again when one has ended. For one event loop.

    Args:
        channel: To the stage.
        info: What it is.
    """

    _epochs = itertools.count(1)

    def __init__(self, channel: grpc.aio.Channel, info: stage_pb2.GetInfoResponse) -> None:
        self.channel = channel
        self.info = info
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str) -> AsyncIterator[Self]:
        """Connects for the time of a block."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = stage_pb2_grpc.StageServiceStub(channel)
            wire = cls(channel, await stub.GetInfo(stage_pb2.GetInfoRequest(), timeout=ANSWER_S))
            try:
                yield wire
            finally:
                await wire.close()

    def opening(self, **changes: object) -> bytes:
        """The first message of a stream, as it should be but for the changes."""
        values: dict[str, object] = {
            "protocol_version": PROTOCOL_VERSION,
            "fingerprint": self.info.fingerprint,
            "layers": self.info.layers,
            "coordinator_id": "tester",
            "epoch": next(self._epochs),
        }
        opening = stage_pb2.OpenStream(**(values | changes))  # type: ignore[arg-type]
        return stage_pb2.ForwardRequest(open=opening).SerializeToString()

    async def answer(self, data: bytes) -> Answer:
        """Sends one message on the open stream and says what came of it."""
        if self._call is None:
            self._call = await self._open(self.opening())
        answer = await self._exchange(self._call, data)
        if isinstance(answer, StagecoachError):
            self._call = None
        return answer

    async def first_answer(self, data: bytes) -> Answer:
        """Sends one message as the first of a stream of its own."""
        await self.close()
        call = self.new_call()
        try:
            return await self._exchange(call, data)
        finally:
            call.cancel()

    async def close(self) -> None:
        """Ends the stream that is open."""
        call, self._call = self._call, None
        if call is not None:
            await call.done_writing()
            async with asyncio.timeout(ANSWER_S):
                assert await call.read() is grpc.aio.EOF

    def new_call(self) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        """A Forward call that has sent nothing."""
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self.channel.stream_stream(_FORWARD)()
        return call

    async def _open(self, opening: bytes) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        call = self.new_call()
        await call.write(opening)
        async with asyncio.timeout(ANSWER_S):
            message = await call.read()
        assert isinstance(message, bytes)
        assert stage_pb2.ForwardResponse.FromString(message).WhichOneof("payload") == "opened"
        return call

    async def _exchange(
        self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", data: bytes
    ) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_S):
                with may_have_ended():
                    await call.write(data)
                message = await call.read()
        except grpc.aio.AioRpcError:
            return await self._ending(call)
        if not isinstance(message, bytes):
            return await self._ending(call)
        return stage_pb2.ForwardResponse.FromString(message).result

    async def _ending(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> StagecoachError:
        async with asyncio.timeout(ANSWER_S):
            code, details = await call.code(), await call.details()
            metadata = await call.trailing_metadata()
        assert code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN), (code, details)
        return from_ending(code, details, metadata)


def micro_batch(
    *slices: tuple[int, int, int], seed: int = 0, logits: bool = True
) -> stage_pb2.ForwardRequest:
    """A valid micro-batch of (slot, start, number of tokens), the same for the same arguments.

    The hidden states of a token depend on its slot, position and `seed` alone.
    """
    rows = np.concatenate(
        [
            np.random.default_rng((seed, slot, position)).standard_normal(HIDDEN_SIZE, np.float32)
            for slot, start, num in slices
            for position in range(start, start + num)
        ]
    )
    num_tokens = sum(num for _, _, num in slices)
    message = stage_pb2.MicroBatch(
        micro_batch_id=1,
        slices=[
            stage_pb2.SequenceSlice(kv_slot=slot, start_position=start, num_tokens=num)
            for slot, start, num in slices
        ],
    )
    message.hidden_states.dtype = dtype_named("float32")
    message.hidden_states.shape.extend((num_tokens, HIDDEN_SIZE))
    message.hidden_states.data = rows.tobytes()
    if logits:
        message.logits.add(row=num_tokens - 1, num_candidates=1024)
    return stage_pb2.ForwardRequest(micro_batch=message)


def failure(answer: Answer) -> StagecoachError:
    """The error in an answer, in-band or not."""
    if isinstance(answer, StagecoachError):
        return answer
    assert answer.HasField("status"), "the stage took it"
    return from_status(answer.status)


def logits_bytes(answer: Answer) -> bytes:
    """The full row of logits in an answer, as it came."""
    assert not isinstance(answer, StagecoachError), answer
    assert not answer.HasField("status"), answer.status
    return bytes(answer.logits[0].full.data)


async def canary(wire: StageWire) -> Sequence[bytes]:
    """Logits of a prefill and a decode, to be compared bit by bit."""
    slot = MAX_NUM_SEQS - 1
    prefill = micro_batch((slot, 0, 20), seed=7)
    return [
        logits_bytes(await wire.answer(message.SerializeToString()))
        for message in (prefill, micro_batch((slot, 20, 1), seed=7))
    ]
