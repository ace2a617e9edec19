"""Those who observe the engine: its log, metrics, traces. The engine knows this protocol alone."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.core.observation import RequestEnd, StepSummary
from protos.errors import StagecoachError

_log = logging.getLogger(__name__)


class EngineObserver(Protocol):
    """Hears what the engine does, on its event loop and in order; returns at once.

    Each request that is accepted ends exactly once.
    """

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """A request is valid and waits."""
        ...

    def request_refused(self, error: StagecoachError) -> None:
        """A request was not taken."""
        ...

    def request_ended(self, end: RequestEnd) -> None:
        """A request has ended, in whatever way."""
        ...

    def step_ended(self, step: StepSummary) -> None:
        """A micro-batch went through all stages."""
        ...


class Observers:
    """Tells several observers; one that fails is logged and dropped, and costs no request.

    Args:
        observers: In the order in which they are told.
    """

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        """Keeps a list of its own."""
        self._observers = list(observers)

    @property
    def are_present(self) -> bool:
        """True when anybody would hear."""
        return bool(self._observers)

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_accepted(request_id, num_prompt_tokens))

    def request_refused(self, error: StagecoachError) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_refused(error))

    def request_ended(self, end: RequestEnd) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_ended(end))

    def step_ended(self, step: StepSummary) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.step_ended(step))

    def _tell(self, tell: Callable[[EngineObserver], None]) -> None:
        for observer in tuple(self._observers):
            try:
                tell(observer)
            except Exception:  # whoever watches must not stop what is watched
                self._observers.remove(observer)
                name = type(observer).__name__
                _log.exception("an observer failed and is dropped", extra={"observer": name})
