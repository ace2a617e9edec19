"""Names for people."""

import os
from collections.abc import Collection
from pathlib import Path

_MAX_SHOWN = 8


def listed(names: Collection[str]) -> str:
    """Joins the first few of any number of names, in order, and says how many more there are."""
    shown = ", ".join(sorted(names)[:_MAX_SHOWN])
    more = len(names) - _MAX_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def name_of(path: Path) -> str:
    """The last part of a path, without its bytes that are no text."""
    return os.fsencode(path.name).decode(errors="replace")
