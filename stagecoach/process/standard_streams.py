"""The standard streams of a command: closed ones, as with `<&-`, and what stays in buffers."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def open_missing_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    Otherwise Python has None in their places, and the next file or socket gets their numbers.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays


@contextmanager
def written_output() -> Iterator[None]:
    """Writes behind the block what stdout still holds, however the block ends.

    Python would do so as it exits, and report what fails with a code and a traceback of its own.

    Raises:
        OSError: It cannot be written, as on a full disk; it is dropped.
    """
    is_well = False
    try:
        yield
        is_well = True
    except SystemExit as ended:
        is_well = not ended.code
        raise
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            drop_output()
            if is_well:  # otherwise the command says what went wrong
                raise


def drop_output() -> None:
    """Sends what stdout holds, and what is printed from now on, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
