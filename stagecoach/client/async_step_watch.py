"""The steps of a coordinator as they happen, for asyncio."""

from types import TracebackType
from typing import Self

import grpc.aio

from stagecoach.client.async_read import read_message
from stagecoach.client.channel import Peer
from stagecoach.client.steps import StepReader, read_origin_unix_ns
from stagecoach.contract.step_record import StepRecord
from stagecoach.v1 import generation_pb2

AsyncWatchCall = grpc.aio.UnaryStreamCall[
    generation_pb2.WatchStepsRequest, generation_pb2.WatchStepsResponse
]


class AsyncStepWatch:
    """Async iterator over the `StepRecord`s of all requests, without end until it is closed.

    For one task of one event loop.

    Args:
        call: The running call.
        peer: The coordinator, for errors.
    """

    origin_unix_ns: int
    """Wall clock of the coordinator when the watch began, in nanoseconds since 1970."""

    def __init__(self, call: AsyncWatchCall, peer: Peer) -> None:
        self._call = call
        self._peer = peer
        self._reader = StepReader()
        self.origin_unix_ns = 0

    @property
    def num_lost(self) -> int:
        """Steps that the coordinator dropped because they were not read in time."""
        return self._reader.num_lost

    async def start(self) -> Self:
        """Waits until the watch has begun; call once, before iterating.

        Raises:
            StagecoachError: The coordinator does not let itself be watched.
        """
        self.origin_unix_ns = read_origin_unix_ns(await self._read(), self._peer.address)
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepRecord:
        """Waits for the next record.

        Raises:
            StopAsyncIteration: The coordinator ended the watch in good order.
            StagecoachError: The watch was closed, or the coordinator went away.
        """
        while (record := self._reader.next()) is None:
            message = await self._read()
            # Anything else is grpc's sign that the stream ended in good order.
            if not isinstance(message, generation_pb2.WatchStepsResponse):
                raise StopAsyncIteration
            self._reader.take(message)
        return record

    async def _read(self) -> object:
        return await read_message(self._call, peer=self._peer, name="watch")

    def close(self) -> None:
        """Ends the watch; may be called again."""
        if not self._call.done():
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
