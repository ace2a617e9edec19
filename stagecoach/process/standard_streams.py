"""The standard streams of a command that was started without some of them, as with `<&-`."""

import os
import sys


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
