"""The interface of a display, and the choice of the one that fits where stderr goes."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from stagecoach.process.load_display.entry import Entry


class Display(Protocol):
    """Shows one entry for each name; one thread."""

    def show(self, name: str, entry: Entry) -> None:
        """Replaces the entry of a name."""
        ...


def load_display(
    names: list[str], write_line: Callable[[str], None]
) -> AbstractContextManager[Display]:
    """Chooses bars when stderr is a terminal, and lines when it is not.

    Args:
        names: Names of what will be shown, in order.
        write_line: Takes a line where there are no bars; a log, or stderr.

    Returns:
        A context manager; what it shows ends with its block.
    """
    if sys.stderr.isatty():
        from stagecoach.process.load_display.bars import Bars  # rich, which costs time to import

        return Bars(names)
    from stagecoach.process.load_display.lines import Lines

    return Lines(write_line)
