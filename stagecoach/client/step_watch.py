"""The steps of a coordinator as they happen, for synchronous callers."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from stagecoach.client.call_messages import CallMessages
from stagecoach.client.channel import Peer, read_error
from stagecoach.client.steps import StepReader, read_origin_unix_ns
from stagecoach.contract.step_record import StepRecord
from stagecoach.v1 import generation_pb2


class StepWatch:
    """Iterator over the `StepRecord`s of all requests, without end until it is closed.

    Iteration by one thread; `close` may be called from any.

    Args:
        call: The running call.
        peer: The coordinator, for errors.

    Raises:
        StagecoachError: The coordinator does not let itself be watched.
    """

    origin_unix_ns: int
    """Wall clock of the coordinator when the watch began, in nanoseconds since 1970."""

    def __init__(self, call: Iterator[generation_pb2.WatchStepsResponse], peer: Peer) -> None:
        self._messages = CallMessages(call, "watch")
        self._peer = peer
        self._reader = StepReader()
        try:
            first = next(self._messages, None)
        except grpc.RpcError as error:
            raise read_error(error, peer) from error
        self.origin_unix_ns = read_origin_unix_ns(first, peer.address)

    @property
    def num_lost(self) -> int:
        """Steps that the coordinator dropped because they were not read in time."""
        return self._reader.num_lost

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepRecord:
        """Waits for the next record.

        Raises:
            StopIteration: The coordinator ended the watch in good order.
            StagecoachError: The watch was closed, or the coordinator went away.
        """
        try:
            while (record := self._reader.next()) is None:
                self._reader.take(next(self._messages))
        except grpc.RpcError as error:
            raise read_error(error, self._peer) from error
        return record

    def close(self) -> None:
        """Ends the watch; may be called again."""
        self._messages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
