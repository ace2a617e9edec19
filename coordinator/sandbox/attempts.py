"""Tries again what failed because a process was killed from outside."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.sandbox.errors import ProcessKilledError

_PAUSES_S = (0.0, 0.1, 0.3, 1.0)
"""Before each further attempt: whoever kills one process may be about to kill the next."""

MAX_KILLED = len(_PAUSES_S) + 1
"""Processes in a row that one call may lose before it fails."""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def unless_killed(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Returns what an attempt returns, the first whose processes nobody kills.

    Args:
        attempt: Keeps nothing of an earlier one.

    Raises:
        ProcessKilledError: A process was killed in each of `MAX_KILLED` attempts.
    """
    for pause_s in _PAUSES_S:
        try:
            return await attempt()
        except ProcessKilledError as error:
            _log.warning("trying again in another process", extra={"error": str(error)})
        await asyncio.sleep(pause_s)
    return await attempt()
