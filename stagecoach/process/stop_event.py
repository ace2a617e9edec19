"""How a command that runs until it is stopped learns that it should, and stops its work."""

import asyncio
import os
import threading
from collections.abc import Coroutine

from stagecoach.process.stop_signals import stop_on_signals


def stop_event(*, with_parent: bool) -> asyncio.Event:
    """Returns an event of the running loop that the first signal to stop sets.

    Args:
        with_parent: Also set it when stdin reaches its end, as it does when the process that holds
            its other end dies, in whatever way.
    """
    stop = asyncio.Event()
    stop_on_signals(stop)
    if with_parent:
        threading.Thread(
            target=_set_at_stdin_end,
            args=(stop, asyncio.get_running_loop()),
            name="parent-watch",
            daemon=True,
        ).start()
    return stop


async def run_until(stop: asyncio.Event, work: Coroutine[object, object, None]) -> None:
    """Runs `work` until it ends or `stop` is set; then it is cancelled and waited for.

    Raises:
        Exception: Whatever `work` raised.
    """
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})
    if not working.cancelled():
        working.result()


def _set_at_stdin_end(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)
