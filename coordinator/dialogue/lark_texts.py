"""Texts in Lark, as llguidance reads it."""

import re
from collections.abc import Collection

ANY = r"(.|\n)*"
EMPTY = '""'

_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
"""Characters of regular expressions that are not themselves."""


def free(excluded: Collection[str], text: str = ANY) -> str:
    """A terminal that matches a text, but not what is excluded."""
    return " & ".join([f"/{text}/", *(f"~/{one}/" for one in excluded)])


def holds(text: str) -> str:
    """A regular expression of what holds a text."""
    return f"{ANY}{escaped(text)}{ANY}"


def escaped(text: str) -> str:
    """A text as a regular expression between slashes."""
    return _META.sub(r"\\\g<0>", text).replace("\n", r"\n")
