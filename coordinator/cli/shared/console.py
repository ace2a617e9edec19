"""How commands print for people."""

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160
"""Columns of a table that does not go to a terminal; nothing is cut there."""

_CONTROLS = dict.fromkeys((*range(32), 127, *range(128, 160)), "�")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def printable(text: str) -> str:
    """Makes text of a model harmless for a terminal, which would obey its control characters."""
    return text.translate(_CONTROLS)


def table_console() -> Console:
    """Returns a console on stdout for tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def plain_table() -> Table:
    """Returns an empty table in the style of all commands."""
    return Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
