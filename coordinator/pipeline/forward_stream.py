"""One open Forward stream, and the micro-batches in flight on it.

One task reads the stream's answers and resolves a future for each micro-batch; another looks at the
connection and at the clock, since cancelling a read would break the stream. Writes go out in the
order of the calls, which keeps slot operations in order.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc
import grpc.aio

from coordinator.pipeline.call_ending import is_cancelled
from coordinator.pipeline.channel_socket import ChannelSocket
from coordinator.pipeline.forward_call import read
from coordinator.pipeline.liveness import WATCH_PERIOD_S
from coordinator.pipeline.stage_errors import lost, named
from coordinator.pipeline.stream_opening import OpenedStream
from coordinator.pipeline.stream_watch import StreamWatch
from stagecoach.contract import status
from stagecoach.contract.errors import (
    DeadlineExceededError,
    StagecoachError,
    UnavailableError,
    is_draining,
)
from stagecoach.contract.step_record import StageVisit
from stagecoach.v1 import stage_pb2

_log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """What was lost with a stream that ended without being asked to."""

    micro_batch_ids: frozenset[int]
    """Micro-batches that the stage was sent and did not answer: it may have been lost by one of
    them."""
    is_announced: bool
    """True when the stage said that it stops, so that nothing is to blame."""


class StageReply(NamedTuple):
    """What a stage made of a micro-batch."""

    result: stage_pb2.MicroBatchResult
    visit: StageVisit


class _Arrival(NamedTuple):
    result: stage_pb2.MicroBatchResult
    arrived_ns: int


class ForwardStream:
    """Runs micro-batches on one stage. Used from one event loop, in which it is made.

    Args:
        opened: The stream.
        address: Address of the stage.
        watch: Says when the stage counts as dead.
        on_lost: Called once, if the stream ends without being asked to.
    """

    def __init__(
        self,
        opened: OpenedStream,
        *,
        address: str,
        watch: StreamWatch,
        on_lost: Callable[[Loss], None],
    ) -> None:
        self._call = opened.call
        self._ending = opened.ending
        self._address = address
        self._watch = watch
        self._on_lost = on_lost
        self._is_open = True
        self._write_lock = asyncio.Lock()
        self._pending: dict[int, asyncio.Future[_Arrival | StagecoachError]] = {}
        self._tasks = (
            asyncio.create_task(self._take_answers(), name=f"reader {address}"),
            asyncio.create_task(self._look(opened.socket), name=f"watch {address}"),
        )

    @property
    def is_open(self) -> bool:
        """True until it is lost, dropped or closed."""
        return self._is_open

    async def forward(self, request: stage_pb2.ForwardRequest, num_tokens: int) -> StageReply:
        """Sends a micro-batch and waits for its result; see `StageLink.forward`."""
        started_ns = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        micro_batch_id = request.micro_batch.micro_batch_id
        future = self._pending[micro_batch_id] = loop.create_future()
        try:
            async with self._write_lock:
                if not future.done():  # given up while it waited
                    self._watch.send(micro_batch_id, num_tokens, loop.time())
                    await self._call.write(request)
            arrival = await future
        except asyncio.CancelledError:
            # As when the watch cancels a call that does not take a write.
            if is_cancelled() or not future.done():
                raise
            arrival = future.result()
        except (grpc.RpcError, asyncio.InvalidStateError):
            if future.done():  # the reader or the watch knows why
                arrival = future.result()
            else:
                arrival = lost(await self._ending.error(), self._address)
                self._lose(arrival)
        finally:
            del self._pending[micro_batch_id]
        if isinstance(arrival, StagecoachError):
            raise arrival
        if arrival.result.HasField("status"):
            raise named(status.from_status(arrival.result.status), self._address)
        timings = arrival.result.timings
        visit = StageVisit.of(
            started_ns,
            arrival.arrived_ns,
            queue_ns=timings.queue_ns,
            compute_ns=timings.compute_ns,
            serialize_ns=timings.serialize_ns,
        )
        return StageReply(arrival.result, visit)

    def give_up(self, error: StagecoachError) -> None:
        """Fails what is in flight, though the stream goes on; what was not sent never is."""
        for future in self._pending.values():
            if not future.done():
                future.set_result(error)

    def drop(self) -> None:
        """Takes the stream down, unless it is down."""
        if self._is_open:
            self._is_open = False
            self.give_up(UnavailableError("a stage was lost meanwhile"))
            self._call.cancel()

    async def close(self) -> None:
        """Ends the stream, if it is open, and whatever still runs for it."""
        if self._is_open:
            self._is_open = False
            await self._call.done_writing()
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take_answers(self) -> None:
        """Resolves futures until the stream ends, then says so to everyone who waits."""
        now = asyncio.get_running_loop().time
        try:
            while (response := await read(self._call)) is not None:
                arrived_ns = time.perf_counter_ns()
                self._watch.answer(response.result.micro_batch_id, now())
                future = self._pending.get(response.result.micro_batch_id)
                if future is not None and not future.done():
                    future.set_result(_Arrival(response.result, arrived_ns))
        except grpc.RpcError:
            _log.debug("stream broke", extra={"stage": self._address})
        self._lose(lost(await self._ending.error(), self._address))

    async def _look(self, socket: ChannelSocket | None) -> None:
        """Gives the stage up when it is dead. One timer a stream costs a step nothing."""
        now = asyncio.get_running_loop().time
        while self._is_open:
            # A connection that is closed is the reader's to report.
            state = None if socket is None else socket.look()
            error = self._watch.look(state, now())
            if error is not None:
                is_late = isinstance(error, DeadlineExceededError)
                self._lose((named if is_late else lost)(error, self._address))
                self._call.cancel()
            await asyncio.sleep(WATCH_PERIOD_S)

    def _lose(self, error: StagecoachError) -> None:
        """Takes the stream down, once, and fails what is in flight on it."""
        if not self._is_open:
            return
        self._is_open = False
        _log.warning("stage lost", extra={"stage": self._address, "error": error.message})
        self.give_up(error)
        self._on_lost(Loss(self._watch.unanswered, is_draining(error)))
