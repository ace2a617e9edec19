"""What observes the engine: its log, metrics, traces. The engine knows this protocol alone."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from coordinator.core.observation import RequestEnd, StepSummary
from stagecoach.contract.errors import StagecoachError

Observer = TypeVar("Observer")

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


@runtime_checkable
class StepObserver(Protocol):
    """An observer that hears of every step too; what it is told is made only for such."""

    def step_ended(self, step: StepSummary) -> None:
        """A micro-batch went through all stages."""
        ...


class Observers:
    """Tells several observers; one that fails is logged and dropped, and costs no request.

    Args:
        observers: In the order in which they are told.
    """

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = list(observers)
        self._of_steps = [one for one in observers if isinstance(one, StepObserver)]

    @property
    def hear_steps(self) -> bool:
        """True when anybody hears of steps."""
        return bool(self._of_steps)

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_accepted(request_id, num_prompt_tokens), self._observers)

    def request_refused(self, error: StagecoachError) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_refused(error), self._observers)

    def request_ended(self, end: RequestEnd) -> None:
        """See `EngineObserver`."""
        self._tell(lambda one: one.request_ended(end), self._observers)

    def step_ended(self, step: StepSummary) -> None:
        """See `StepObserver`."""
        self._tell(lambda one: one.step_ended(step), self._of_steps)

    def _tell(self, tell: Callable[[Observer], None], observers: list[Observer]) -> None:
        for observer in tuple(observers):
            try:
                tell(observer)
            except Exception:  # whoever watches must not stop what is watched
                self._observers = [one for one in self._observers if one is not observer]
                self._of_steps = [one for one in self._of_steps if one is not observer]
                name = type(observer).__name__
                _log.exception("an observer failed and is dropped", extra={"observer": name})
