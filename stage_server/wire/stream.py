"""One open Forward stream: reads micro-batches, has them answered, sends the answers in order.

A reader and a writer run side by side, so that the next micro-batch is here when the model thread
is free. At most `MAX_IN_FLIGHT` micro-batches are between the two; then the reader stops, and
HTTP/2 flow control slows the coordinator down.
"""

import asyncio
import time
from functools import partial

import grpc

from stage_server.core.activity import StageActivity
from stage_server.wire.answer import Arrival, answer
from stage_server.wire.lease import Tenure
from stagecoach.contract.errors import StagecoachError, draining_error

MAX_IN_FLIGHT = 8
"""Micro-batches of one stream that are read and not yet answered."""

ForwardContext = grpc.aio.ServicerContext[bytes, bytes]
"""A Forward call, read as bytes until `grpc.aio.EOF`: the model thread parses them."""


class ForwardStream:
    """Serves the micro-batches of one stream that is open and holds the slots.

    Args:
        context: The call.
        tenure: The stream's hold on the slots.
        activity: Counts the micro-batches.
    """

    def __init__(self, context: ForwardContext, tenure: Tenure, activity: StageActivity) -> None:
        self._context = context
        self._tenure = tenure
        self._activity = activity
        self._capacity = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._in_flight: asyncio.Queue[asyncio.Future[bytes] | None] = (
            asyncio.Queue()
        )  # by `_capacity`
        self._reader: asyncio.Task[None] | None = None
        self._end_error: StagecoachError | None = None

    async def run(self) -> None:
        """Serves until the peer closes its side and everything is answered.

        Raises:
            InvalidArgumentError: The peer broke the protocol. Micro-batches before are answered.
            UnavailableError: `drain` was called. Micro-batches that were read are answered.
            DeviceLostError: The device computes no more.
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
            self._end_error = draining_error()
            self._reader.cancel()

    async def _read(self) -> None:
        try:
            while True:
                # First the room, then the message: a reader that is cancelled drops nothing.
                await self._capacity.acquire()
                data = await self._context.read()
                if not isinstance(data, bytes):
                    return
                arrival = Arrival(data, time.perf_counter_ns())
                job = partial(answer, arrival, self._activity, note_tokens=self._tenure.note_tokens)
                self._in_flight.put_nowait(self._tenure.run(job))
        finally:
            self._in_flight.put_nowait(None)

    async def _write(self) -> None:
        while (in_flight := await self._in_flight.get()) is not None:
            await self._context.write(await in_flight)
            self._capacity.release()
