"""The requests that have not ended, by id. Whatever ends a request ends it here, exactly once."""

import asyncio

from coordinator.core.request import FinishReason
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.engine_status import EngineCounters
from coordinator.engine.live_request import LiveRequest
from coordinator.observe.observer import Observers
from stagecoach.contract.errors import InternalError, StagecoachError


class LiveRequests:
    """Adds to the engine's table of requests, and takes from it. Event loop only.

    Every table that knows a request hears of its end once: its stream, its sampler, the dispatcher,
    the counters, the observers. The scheduler may have heard of it before, when a lane took in the
    last token; it is not told again.

    Args:
        by_id: The table, empty. Others read it; nobody else changes it.
        dispatcher: Holds the sequences.
        counters: Counts the ends.
        observers: Hear of each end.
        wake: Set when an end is to reach the stages.
    """

    def __init__(
        self,
        by_id: dict[str, LiveRequest],
        *,
        dispatcher: Dispatcher,
        counters: EngineCounters,
        observers: Observers,
        wake: asyncio.Event,
    ) -> None:
        self._by_id = by_id
        self._dispatcher = dispatcher
        self._counters = counters
        self._observers = observers
        self._wake = wake

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_id

    def add(self, live: LiveRequest) -> None:
        """Takes in one that was placed."""
        self._by_id[live.request_id] = live

    def finish(self, live: LiveRequest, reason: FinishReason) -> None:
        """Ends a request in good order; does nothing when it has ended."""
        if self._by_id.get(live.request_id) is live:
            live.end(reason, live.text.flush())
            self._forget(live, reason)

    def cancel(self, request_id: str) -> None:
        """Ends a request because its client wants no more; does nothing when it has ended."""
        live = self._by_id.get(request_id)
        if live is not None:
            self.finish(live, FinishReason.ABORT)
            self._wake.set()

    def fail(self, live: LiveRequest, error: StagecoachError) -> None:
        """Ends a request with an error; does nothing when it has ended."""
        if self._by_id.get(live.request_id) is live:
            live.stream.end(error)
            self._forget(live, FinishReason.ERROR, error)
            self._wake.set()

    def fail_all(self, error: StagecoachError) -> None:
        """Ends every request with an error."""
        for live in tuple(self._by_id.values()):
            self.fail(live, error)

    def abandon(self, error: InternalError) -> None:
        """Ends every request past the schedulers, which may be what is broken."""
        for live in self._by_id.values():
            live.stream.end(error)
            live.sampler.close()
            self._observers.request_ended(live.as_ended(FinishReason.ERROR, error))
        self._by_id.clear()

    def _forget(
        self, live: LiveRequest, reason: FinishReason, error: StagecoachError | None = None
    ) -> None:
        del self._by_id[live.request_id]
        live.sampler.close()
        self._dispatcher.forget(live.sequence, reason)
        self._counters.num_finished += 1
        self._observers.request_ended(live.as_ended(reason, error))
