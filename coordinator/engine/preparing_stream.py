"""The events of a request that takes some work before it can be queued."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Generic, Self, TypeVar

from coordinator.core.events import GenerationEvent
from coordinator.engine.request_stream import RequestStream
from stagecoach.contract.errors import RequestAbortedError

Prepared = TypeVar("Prepared")


class PreparingStream(Generic[Prepared]):
    """Async iterator as `RequestStream`; reading its first event does the work.

    Iteration raises what the work and queueing raise in the place of `Accepted`, and then ends.
    Used from one event loop, by one reader.

    Args:
        prepare: Does the work: tokenizes, compiles the grammar. Called at most once; cancelled
            when the request is.
        start: Queues the request with what `prepare` returned; called at most once.
        discard: Gives up what `prepare` returned when the request is cancelled meanwhile.
    """

    def __init__(
        self,
        prepare: Callable[[], Coroutine[None, None, Prepared]],
        start: Callable[[Prepared], RequestStream],
        discard: Callable[[Prepared], None] = lambda _: None,
    ) -> None:
        self._prepare = prepare
        self._start = start
        self._discard = discard
        self._work: asyncio.Task[Prepared] | None = None
        self._stream: RequestStream | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Ends the request, the work for it included; does nothing after its end."""
        self._is_cancelled = True
        if self._stream is not None:
            self._stream.cancel()
        elif self._work is not None:
            self._work.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        """The next event."""
        if self._stream is None:
            if self._work is not None:
                raise StopAsyncIteration
            self._stream = self._start(await self._prepared())
        return await anext(self._stream)

    async def _prepared(self) -> Prepared:
        self._work = asyncio.create_task(self._prepare())
        if self._is_cancelled:
            self._work.cancel()
        try:
            prepared = await self._work
        except asyncio.CancelledError:
            reader = asyncio.current_task()
            self._work.add_done_callback(self._drop)
            if not self._is_cancelled or (reader is not None and reader.cancelling()):
                raise  # the reader itself is cancelled
            raise RequestAbortedError("the request was cancelled") from None
        if self._is_cancelled:
            self._discard(prepared)
            raise RequestAbortedError("the request was cancelled")
        return prepared

    def _drop(self, work: asyncio.Task[Prepared]) -> None:
        if not work.cancelled() and work.exception() is None:
            self._discard(work.result())
