"""How a command that runs until it is stopped learns that it should, and stops its work."""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_event(*, with_parent: bool) -> asyncio.Event:
    """Returns an event of the running loop that the first SIGTERM or SIGINT sets.

    The second one sends the process to its default end.

    Args:
        with_parent: Also set it when stdin reaches its end, as it does when the process that holds
            its other end dies, in whatever way.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    if with_parent:
        threading.Thread(
            target=_set_at_stdin_end, args=(stop, loop), name="parent-watch", daemon=True
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
