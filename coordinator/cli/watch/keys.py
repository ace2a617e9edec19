"""A key that ends what is shown in a terminal, as in pagers and other watches."""

import asyncio
import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

QUIT_KEYS = b"qQ\x04"
"""q, and Ctrl-D."""


@contextmanager
def quit_key(stop: asyncio.Event) -> Iterator[None]:
    """Sets `stop` when a quit key is pressed while the block runs; only where stdin is a terminal.

    Keys are not shown meanwhile, nor kept until the end of a line; Ctrl-C stays a signal.
    """
    if not _is_ours():
        yield
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    quiet = termios.tcgetattr(stdin)
    quiet[3] &= ~(termios.ICANON | termios.ECHO)
    loop = asyncio.get_running_loop()

    def read() -> None:
        keys = os.read(stdin, 1024)
        if not keys:  # the terminal is gone
            loop.remove_reader(stdin)
        if any(key in QUIT_KEYS for key in keys):
            stop.set()

    termios.tcsetattr(stdin, termios.TCSADRAIN, quiet)
    loop.add_reader(stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _is_ours() -> bool:
    """True when keys come to this process: it is not in the background of its terminal."""
    if not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False
