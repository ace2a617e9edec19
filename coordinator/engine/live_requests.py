"""All requests that have not ended, by id; whatever ends one does so here, exactly once."""

from coordinator.core.request import FinishReason
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.engine_status import EngineCounters
from coordinator.engine.live_request import LiveRequest
from coordinator.observe.observer import Observers
from stagecoach.contract.errors import InternalError, StagecoachError


class LiveRequests:
    """The engine's table of requests. Owned by the engine's task.

    Args:
        dispatcher: Holds their sequences; hears of each end.
        counters: Counts the ends.
        observers: Hear of each end.
    """

    def __init__(
        self, dispatcher: Dispatcher, counters: EngineCounters, observers: Observers
    ) -> None:
        self.by_id: dict[str, LiveRequest] = {}
        """Read by whoever runs them; changed here alone."""
        self._dispatcher = dispatcher
        self._counters = counters
        self._observers = observers

    def add(self, live: LiveRequest) -> None:
        """Takes in one that was placed."""
        self.by_id[live.request_id] = live

    def finish(self, live: LiveRequest, reason: FinishReason) -> None:
        """Ends a request in good order."""
        live.end(reason, live.text.flush())
        self._forget(live.request_id, reason)

    def fail(self, request_id: str, error: StagecoachError) -> bool:
        """Ends a request with an error; returns False when it has ended."""
        live = self.by_id.get(request_id)
        if live is None:
            return False
        live.stream.end(error)
        self._forget(request_id, FinishReason.ERROR, error)
        return True

    def fail_all(self, error: StagecoachError) -> None:
        """Ends every request with an error."""
        for request_id in tuple(self.by_id):
            self.fail(request_id, error)

    def abandon(self, error: InternalError) -> None:
        """Ends every request past the schedulers, which may be what is broken."""
        for live in self.by_id.values():
            live.stream.end(error)
            live.sampler.close()
            self._observers.request_ended(live.as_ended(FinishReason.ERROR, error))
        self.by_id.clear()

    def _forget(
        self, request_id: str, reason: FinishReason, error: StagecoachError | None = None
    ) -> None:
        live = self.by_id.pop(request_id)
        live.sampler.close()
        self._dispatcher.finish(request_id, reason)
        self._counters.num_finished += 1
        self._counters.num_preemptions += live.sequence.num_preemptions
        self._observers.request_ended(live.as_ended(reason, error))
