"""The peer's own status at the end of a call, which grpc.aio may replace by another.

A write fails when the peer has just ended the call. grpc.aio then makes a status of its own, before
or after the peer's status arrives, and keeps the later one of the two.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from stagecoach.contract import status
from stagecoach.contract.errors import RequestAbortedError, StagecoachError, UnavailableError

T = TypeVar("T")

TOLD_S = 0.5
"""How long the peer's ending may come after the other."""


class _Ending(NamedTuple):
    code: grpc.StatusCode
    details: str | None
    metadata: Any


class CallEnding:
    """Keeps the peer's ending of one call. Make it with the call, before anything is written."""

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._told: _Ending | None = None
        self._is_told = asyncio.Event()
        call.add_done_callback(self._note)

    async def error(self) -> StagecoachError:
        """Waits for the end; a call that ends in good order is an error too."""
        if await self._call.details() == status.LOST_STATUS:
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_S):
                    await self._is_told.wait()
        code, details, metadata = self._told or _Ending(
            await self._call.code(),
            await self._call.details(),
            await self._call.trailing_metadata(),
        )
        if code == grpc.StatusCode.OK:
            return UnavailableError("it ended its stream")
        return unless_cancelled(status.from_ending(code, details, metadata))

    def _note(self, _: object) -> None:
        """Called each time that the call is given an ending."""
        details = _now(self._call.details())
        if details == status.LOST_STATUS:
            return
        code, metadata = _now(self._call.code()), _now(self._call.trailing_metadata())
        self._told = _Ending(code, details, metadata)
        self._is_told.set()


def unless_cancelled(error: StagecoachError) -> StagecoachError:
    """A call that nobody here cancelled ends so when its stage is going away."""
    if isinstance(error, RequestAbortedError):
        return UnavailableError("it cancelled the call")
    return error


def is_cancelled() -> bool:
    """True when this task is to end.

    grpc.aio raises `CancelledError` too when another task cancelled the call or closed its channel.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _now(ready: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for: a task's turn would be too late."""
    try:
        ready.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a call that has ended knows how")
