"""The signals that tell a server to end, and what each means once it has begun to.

SIGTERM is a service manager's, SIGINT is Ctrl-C, and SIGHUP comes when the terminal closes, from
the kernel and the shell, often more than once.
"""

import asyncio
import os
import signal

_TOLD = (signal.SIGTERM, signal.SIGINT)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that end this process; SIGHUP not where `nohup` had it ignored."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return _TOLD if is_ignored else (*_TOLD, signal.SIGHUP)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Sets an event of the running loop at the first of `stop_signals`.

    A second SIGTERM or SIGINT sends the process to its default end. A further SIGHUP does nothing.
    What is written to a terminal that is gone is lost from its SIGHUP on, and raises nothing.
    """
    loop = asyncio.get_running_loop()
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def on_told() -> None:
        for number in _TOLD:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    def on_hangup() -> None:
        gone = [number for number in terminals if not os.isatty(number)]
        if gone:
            null = os.open(os.devnull, os.O_WRONLY)
            for number in gone:
                os.dup2(null, number)
            os.close(null)
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, on_hangup if number is signal.SIGHUP else on_told)
