"""The time in which no pipeline can be formed: requests wait, and after a while they fail."""

import asyncio
import logging
import time
from collections.abc import Callable

from stagecoach.contract.errors import InternalError, UnavailableError

_log = logging.getLogger(__name__)


class Outage:
    """Keeps the time of an outage; one event loop.

    Args:
        stage_wait_s: How long requests wait.
    """

    def __init__(self, stage_wait_s: float) -> None:
        self._stage_wait_s = stage_wait_s
        self._began_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_too_long = False
        self._refusal: UnavailableError | None = None

    def check(self) -> None:
        """Refuses a request when those that waited have failed.

        Raises:
            UnavailableError: Says what is missing.
        """
        if self._refusal is not None:
            raise UnavailableError(self._refusal.message)

    def begin(self, wake: Callable[[], None], *, num_requests: int) -> bool:
        """Says that there is no pipeline now.

        Args:
            wake: Called when it has lasted too long.
            num_requests: That wait.

        Returns:
            True when it has lasted too long, so that requests are to fail.
        """
        if self._began_s is None:
            self._began_s = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(
                self._stage_wait_s, self._expire, wake
            )
            _log.warning("waiting for stages", extra={"num_paused_requests": num_requests})
        return self._is_too_long

    def fail(self, problem: str) -> UnavailableError:
        """Refuses requests until `clear`; returns what to end the waiting ones with."""
        if self._refusal is None:
            self._refusal = UnavailableError(f"the pipeline is down: {problem}")
            _log.error("the pipeline is down", extra={"error": problem})
        return self._refusal

    def clear(self) -> None:
        """Says that there is a pipeline."""
        if self._began_s is not None:
            waited_s = round(time.monotonic() - self._began_s, 3)
            _log.warning("a pipeline is back", extra={"waited_s": waited_s})
        if self._timer is not None:
            self._timer.cancel()
        self._began_s = self._timer = self._refusal = None
        self._is_too_long = False

    def end(self) -> InternalError:
        """Refuses all requests for good, because the engine is broken; returns what it says."""
        self._refusal = UnavailableError("the engine stopped; see the coordinator's log")
        return InternalError(self._refusal.message)

    def _expire(self, wake: Callable[[], None]) -> None:
        # Noted here, not worked out from a clock: a timer may fire before another clock says so,
        # and nobody would ask again.
        self._is_too_long = True
        wake()
