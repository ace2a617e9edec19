"""One open Forward stream: reads micro-batches, has them computed, answers in order.

A reader and a writer run side by side, so that the next micro-batch is read and checked while the
model thread is busy. `MAX_IN_FLIGHT` bounds what is between them; a full pipe is not read from, and
HTTP/2 flow control slows the coordinator down.
"""

import asyncio
import time
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from protos import status
from protos.errors import InternalError, InvalidArgumentError, StagecoachError, UnavailableError
from protos.stagecoach.v1 import stage_pb2
from stage_server.batch import ForwardOutput
from stage_server.engine import EngineInfo
from stage_server.executor import Timed
from stage_server.lease import Tenure
from stage_server.micro_batch import build_result, parse_micro_batch

MAX_IN_FLIGHT = 8
"""Micro-batches of one stream that are read and not yet answered."""

ForwardContext = grpc.aio.ServicerContext[object, stage_pb2.ForwardResponse]
"""A Forward call, read as bytes until `grpc.aio.EOF`: parsing a message is timed and may fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    """A micro-batch between reader and writer."""

    micro_batch_id: int
    arrived_ns: int
    parse_ns: int
    outcome: "asyncio.Future[Timed[ForwardOutput]] | StagecoachError"
    """What the model thread will say, or what is wrong with the message."""


async def read_request(context: ForwardContext) -> stage_pb2.ForwardRequest | None:
    """Reads one message; None at the end of the stream.

    Raises:
        InvalidArgumentError: The bytes are not a `ForwardRequest`.
    """
    data = await context.read()
    return _parse_request(data) if isinstance(data, bytes) else None


class ForwardStream:
    """Serves the micro-batches of one stream that is open and holds the slots.

    Args:
        context: The call.
        tenure: The stream's hold on the slots.
        info: The stage.
    """

    def __init__(self, context: ForwardContext, tenure: Tenure, info: EngineInfo) -> None:
        """Serves nothing yet."""
        self._context = context
        self._tenure = tenure
        self._info = info
        self._capacity = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._in_flight: asyncio.Queue[_InFlight | None] = asyncio.Queue()  # by `_capacity`
        self._reader: asyncio.Task[None] | None = None
        self._end_error: StagecoachError | None = None

    async def run(self) -> None:
        """Serves until the peer closes its side and everything is answered.

        Raises:
            InvalidArgumentError: The peer broke the protocol. Micro-batches before are answered.
            UnavailableError: `drain` was called. Micro-batches that were read are answered.
            StaleStateError: A stream of a higher epoch took over.
        """
        reader = self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait({writer, self._tenure.fenced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            writer.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
        if self._tenure.fenced.done():
            raise self._tenure.stale_error()
        for outcome in (*outcomes, self._end_error):
            if isinstance(outcome, Exception):
                raise outcome

    def drain(self) -> None:
        """Stops reading; the stream ends when everything that was read is answered."""
        assert self._reader is not None, "only a stream that runs can be drained"
        if not self._reader.done():
            self._end_error = UnavailableError("the stage is draining")
            self._reader.cancel()

    async def _read(self) -> None:
        try:
            while True:
                # First the room, then the message: what was read is admitted without waiting.
                await self._capacity.acquire()
                data = await self._context.read()
                if not isinstance(data, bytes):
                    return
                self._in_flight.put_nowait(self._admit(data, time.perf_counter_ns()))
        except InvalidArgumentError as error:
            self._end_error = error
        finally:
            self._in_flight.put_nowait(None)

    def _admit(self, data: bytes, arrived_ns: int) -> _InFlight:
        """Checks a micro-batch and queues it on the model thread."""
        request = _parse_request(data)
        payload = request.WhichOneof("payload")
        if payload != "micro_batch":
            raise InvalidArgumentError(
                f"payload is {payload or 'unset'}, must be micro_batch after the stream is open",
                field="payload",
            )
        outcome: asyncio.Future[Timed[ForwardOutput]] | StagecoachError
        try:
            batch = parse_micro_batch(request.micro_batch, self._info)
        except InvalidArgumentError as error:
            outcome = error
            parse_ns = time.perf_counter_ns() - arrived_ns
        else:
            parse_ns = time.perf_counter_ns() - arrived_ns
            outcome = self._tenure.forward(batch)
        return _InFlight(
            micro_batch_id=request.micro_batch.micro_batch_id,
            arrived_ns=arrived_ns,
            parse_ns=parse_ns,
            outcome=outcome,
        )

    async def _write(self) -> None:
        while (in_flight := await self._in_flight.get()) is not None:
            result = await self._result(in_flight)
            await self._context.write(stage_pb2.ForwardResponse(result=result))
            self._capacity.release()

    async def _result(self, in_flight: _InFlight) -> stage_pb2.MicroBatchResult:
        """Waits for a micro-batch; whatever went wrong with it is said in-band."""
        try:
            if isinstance(in_flight.outcome, StagecoachError):
                raise in_flight.outcome
            timed = await in_flight.outcome
        except Exception as error:
            return stage_pb2.MicroBatchResult(
                micro_batch_id=in_flight.micro_batch_id, status=status.to_status(_typed(error))
            )
        started_ns = time.perf_counter_ns()
        result = build_result(in_flight.micro_batch_id, timed.value)
        result.timings.queue_ns = timed.started_ns - in_flight.arrived_ns - in_flight.parse_ns
        result.timings.compute_ns = timed.compute_ns
        result.timings.serialize_ns = in_flight.parse_ns + time.perf_counter_ns() - started_ns
        return result


def _parse_request(data: bytes) -> stage_pb2.ForwardRequest:
    try:
        return stage_pb2.ForwardRequest.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(f"{len(data)} bytes are not a ForwardRequest") from error


def _typed(error: Exception) -> StagecoachError:
    """Hides what only the log may say."""
    if isinstance(error, StagecoachError):
        return error
    return InternalError("the forward of this stage failed; its log says why")
