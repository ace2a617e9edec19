"""The events of a request whose grammar is compiled before the request is queued."""

from collections.abc import Awaitable, Callable
from typing import Self

from coordinator.constraint import TokenConstraint
from coordinator.core.events import GenerationEvent
from coordinator.request_stream import RequestStream
from protos.errors import RequestAbortedError


class CompilingStream:
    """Async iterator as `RequestStream`; reading its first event compiles the grammar.

    Iteration raises what compiling and queueing raise in the place of `Accepted`, and then ends.
    Used from one event loop, by one reader.

    Args:
        compiling: Compiles the grammar; called at most once.
        start: Queues the request with its constraint; called at most once.
    """

    def __init__(
        self,
        compiling: Callable[[], Awaitable[TokenConstraint]],
        start: Callable[[TokenConstraint], RequestStream],
    ) -> None:
        """Does nothing yet."""
        self._compiling = compiling
        self._start = start
        self._stream: RequestStream | None = None
        self._is_begun = False
        self._is_cancelled = False

    def cancel(self) -> None:
        """Ends the request; does nothing after its end."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def __aiter__(self) -> Self:
        """The stream itself."""
        return self

    async def __anext__(self) -> GenerationEvent:
        """The next event."""
        if self._stream is None:
            if self._is_begun:
                raise StopAsyncIteration
            self._is_begun = True
            constraint = await self._compiling()
            if self._is_cancelled:
                raise RequestAbortedError("the request was cancelled")
            self._stream = self._start(constraint)
        return await anext(self._stream)
