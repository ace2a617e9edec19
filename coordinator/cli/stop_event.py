"""When a command that runs until it is stopped should stop."""

import asyncio
import os
import signal
import threading

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


def _set_at_stdin_end(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)
