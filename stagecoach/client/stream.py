"""A completion as it grows, for synchronous callers."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from stagecoach.client.call_messages import CallMessages
from stagecoach.client.channel import Peer, read_error
from stagecoach.client.completion import Completion, PartialCompletion, TokenEvent
from stagecoach.contract.errors import InternalError
from stagecoach.v1 import generation_pb2


class TokenStream:
    """Iterator over the `TokenEvent`s of one completion.

    A stream that is left before its end should be closed, as a `with` block does; that cancels the
    request. A loop over `client.generate(...)` that is left with `break` closes its stream too,
    since nothing refers to it any more. For one thread, except that `close` may be called from any.

    Args:
        call: The running call.
        peer: The coordinator, for errors.
        partial: The completion, nothing of which has come yet.
    """

    def __init__(
        self,
        call: Iterator[generation_pb2.GenerateResponse],
        peer: Peer,
        partial: PartialCompletion,
    ) -> None:
        self._messages = CallMessages(call, "stream")
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        """Waits for the next event.

        Raises:
            StopIteration: The completion is whole.
            StagecoachError: The request failed, or the stream was closed before.
        """
        try:
            while True:
                event = self._partial.take(next(self._messages))
                if event is not None:
                    return event
        except grpc.RpcError as error:
            raise read_error(error, self._peer) from error

    def result(self) -> Completion:
        """Waits for the end and returns the whole completion; may be called again.

        Raises:
            StagecoachError: The request failed, or the stream was closed before its end.
        """
        for _event in self:
            pass
        if self._partial.completion is None:
            raise InternalError(
                f"coordinator at {self._peer.address} ended a stream without its end"
            )
        return self._partial.completion

    def close(self) -> None:
        """Cancels the request; does nothing after the end."""
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

    def __del__(self) -> None:
        """Cancels a request that nobody can read any more."""
        self.close()
