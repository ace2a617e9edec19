"""A completion as it grows, for asyncio."""

from types import TracebackType
from typing import Self

import grpc.aio

from stagecoach.client.async_read import read_message
from stagecoach.client.channel import Peer
from stagecoach.client.completion import Completion, PartialCompletion, TokenEvent
from stagecoach.contract.errors import InternalError
from stagecoach.v1 import generation_pb2

AsyncGenerateCall = grpc.aio.UnaryStreamCall[
    generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
]


class AsyncTokenStream:
    """Async iterator over the `TokenEvent`s of one completion.

    A stream that is left before its end should be closed, as an `async with` block does; that
    cancels the request. A loop over `client.generate(...)` that is left with `break` closes its
    stream too, since nothing refers to it any more. For one task of one event loop.

    Args:
        call: The running call.
        peer: The coordinator, for errors.
        partial: The completion, nothing of which has come yet.
    """

    def __init__(self, call: AsyncGenerateCall, peer: Peer, partial: PartialCompletion) -> None:
        self._call = call
        self._peer = peer
        self._partial = partial

    @property
    def request_id(self) -> str | None:
        """Name of the request, once it was accepted."""
        return self._partial.request_id

    @property
    def text(self) -> str:
        """All text so far."""
        return self._partial.text

    @property
    def reasoning(self) -> str:
        """All that was thought so far; told where the output is divided."""
        return self._partial.reasoning

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids so far."""
        return self._partial.token_ids

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        """Waits for the next event.

        Raises:
            StopAsyncIteration: The completion is whole.
            StagecoachError: The request failed, or the stream was closed before.
        """
        while True:
            message = await read_message(self._call, peer=self._peer, name="stream")
            # Anything else is grpc's sign that the stream ended in good order.
            if not isinstance(message, generation_pb2.GenerateResponse):
                raise StopAsyncIteration
            event = self._partial.take(message)
            if event is not None:
                return event

    async def result(self) -> Completion:
        """Waits for the end and returns the whole completion; may be called again.

        Raises:
            StagecoachError: The request failed, or the stream was closed before its end.
        """
        async for _event in self:
            pass
        if self._partial.completion is None:
            raise InternalError(
                f"coordinator at {self._peer.address} ended a stream without its end"
            )
        return self._partial.completion

    def close(self) -> None:
        """Cancels the request; does nothing after the end."""
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

    def __del__(self) -> None:
        """Cancels a request that nobody can read any more."""
        self.close()
