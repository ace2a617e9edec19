"""The messages of a streaming call, however the program's own interceptors have wrapped it."""

from collections.abc import Iterator
from typing import Generic, Self, TypeVar

import grpc

from stagecoach.contract.errors import RequestAbortedError

MessageT = TypeVar("MessageT")


class CallMessages(Generic[MessageT]):
    """Iterator over what a call answers, which can be ended from any thread.

    An interceptor of the program may answer with any iterator instead of gRPC's call, as
    OpenTelemetry's instrumentation does with a generator. That has no `cancel`, begins the call
    only when it is first read, and says only once how the call ended. One that another thread is
    reading is ended at its next message.

    Args:
        call: The call, or what stands for it.
        name: What the call is to its reader, for errors.
    """

    def __init__(self, call: Iterator[MessageT], name: str) -> None:
        self._call = call
        self._name = name
        self._is_closed = False
        self._ending: StopIteration | grpc.RpcError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MessageT:
        """Waits for the next message.

        Raises:
            StopIteration: The call ended in good order.
            RequestAbortedError: It was closed before its end.
            grpc.RpcError: It failed.
        """
        if self._ending is not None:
            raise self._ending
        if self._is_closed:
            raise self._closed()
        try:
            message = next(self._call)
        except (StopIteration, grpc.RpcError) as ending:
            if self._is_closed:
                raise self._closed() from None
            self._ending = ending
            raise
        if self._is_closed:
            self._end()
            raise self._closed()
        return message

    def close(self) -> None:
        """Cancels the call; does nothing after its end."""
        if self._ending is None and not self._is_closed:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        if isinstance(self._call, grpc.RpcContext):
            self._call.cancel()
            return
        end = getattr(self._call, "cancel", None) or getattr(self._call, "close", None)
        if end is not None:
            try:
                end()
            except ValueError:  # a generator that another thread reads, which will end it
                return

    def _closed(self) -> RequestAbortedError:
        return RequestAbortedError(f"the {self._name} was closed")
