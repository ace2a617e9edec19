"""Waiting for what another process is about to do."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
    *,
    within_s: float,
    what: str,
    every_s: float = 0.02,
) -> None:
    """Waits until a condition holds; fails with `what` when it does not in time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert loop.time() < deadline_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(every_s)
