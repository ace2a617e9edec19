"""What the docstring of a function says of it and of its parameters. No I/O."""

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

_ARGUMENTS = re.compile(r"(Args|Arguments|Parameters|Params):\s*")
_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Params|Attributes|Returns?|Yields?|Raises|Examples?|Notes?|"
    r"Warnings?|See Also|Todo|References):\s*"
)
"""What begins a section in Google's style."""
_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_FIELD = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
"""A parameter in Sphinx's style."""
_OTHER_FIELD = re.compile(r":(?:returns?|rtype|raises?|type|yields?)\b[^:]*:")


class Docstring(NamedTuple):
    """What is said."""

    description: str
    """What the function does: all but the sections; may be empty."""
    parameters: dict[str, str]
    """What each parameter is, by name, in one line."""


def docstring_of(function: Callable[..., object]) -> Docstring:
    """Reads a docstring in Google's or Sphinx's style; all of any other is description."""
    lines = (inspect.getdoc(function) or "").splitlines()
    description: list[str] = []
    parameters: dict[str, list[str]] = {}
    open_entry: list[str] | None = None
    section, indent = "", 0
    for line in lines:
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if stripped and depth == 0:
            open_entry = None
            field = _FIELD.fullmatch(stripped)
            if _SECTION.fullmatch(line):
                section, indent = ("arguments" if _ARGUMENTS.fullmatch(line) else "other"), 0
                continue
            if field is not None:
                section, open_entry = "field", [field[2]]
                parameters[field[1]] = open_entry
                continue
            if _OTHER_FIELD.match(stripped):
                section = "other"
                continue
            section = "" if section != "field" else section
        if section == "arguments" and stripped:
            indent = indent or depth
            entry = _ENTRY.fullmatch(stripped) if depth == indent else None
            if entry is not None:
                open_entry = [entry[2]]
                parameters[entry[1]] = open_entry
                continue
        if section and open_entry is not None and stripped:
            open_entry.append(stripped)
        elif not section:
            description.append(line)
    return Docstring(
        "\n".join(description).strip(),
        {name: " ".join(one for one in texts if one) for name, texts in parameters.items()},
    )
