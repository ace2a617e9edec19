"""Looks a row of a table up by its name, and helps who mistyped it."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from stagecoach.contract.errors import InvalidArgumentError

Row = TypeVar("Row")

_MAX_NEAR = 4


def find_named(table: Mapping[str, Row], name: str, *, field: str) -> Row:
    """Returns the row of that name; upper case and blanks are forgiven.

    Args:
        table: Rows by their names, in lower case with dashes.
        name: What was asked for.
        field: Name of the option, for the error.

    Raises:
        InvalidArgumentError: There is no such row; the message names the nearest ones.
    """
    spelled = name.strip().lower().replace(" ", "-").replace("_", "-")
    row = table.get(spelled)
    if row is not None:
        return row
    near = [known for known in table if _letters(spelled) in _letters(known)]
    near = (near or difflib.get_close_matches(spelled, table))[:_MAX_NEAR]
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(table)}"
    raise InvalidArgumentError(f"{field} {name!r} is not known: {hint}", field=field)


def _letters(name: str) -> str:
    """Letters and digits alone: `rtx3060` is within `rtx-3060-12gb`."""
    return name.replace("-", "")
