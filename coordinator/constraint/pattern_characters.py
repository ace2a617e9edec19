r"""What the classes of a pattern match, where validators read them differently.

ECMA-262 has ASCII's digits and letters in `\d` and `\w`, Python's `re` those of all scripts; each
has some white space of its own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

from coordinator.constraint.code_points import (
    LAST_ASSIGNED,
    CodePoints,
    matched_by_python,
    of_category,
)


@dataclass(frozen=True, slots=True)
class Characters:
    """What one character of a text may be; found when it is asked for."""

    for_all: Callable[[], CodePoints]
    """Characters that every validator takes."""
    for_some: Callable[[], CodePoints]
    """Characters that at least one validator takes."""

    def __invert__(self) -> "Characters":
        """All others."""
        return Characters(lambda: ~self.for_some(), lambda: ~self.for_all())


def exactly(points: CodePoints) -> Characters:
    """Characters that all validators agree on."""
    return Characters(lambda: points, lambda: points)


def any_of(parts: Sequence[Characters]) -> Characters:
    """Characters that are among those of any part."""
    return Characters(
        lambda: CodePoints.of(chain.from_iterable(part.for_all().ranges for part in parts)),
        lambda: CodePoints.of(chain.from_iterable(part.for_some().ranges for part in parts)),
    )


def in_either_case(points: CodePoints) -> Characters:
    """Characters for which case is ignored; beyond ASCII, validators differ in what that is."""
    upper, lower = points & _UPPER, points & _LOWER
    for_all = points | _shifted(upper, _CASE) | _shifted(lower, -_CASE)
    others = _CASES_OF_OTHERS if points & _BEYOND_ASCII else _CASES_OF_ASCII
    return Characters(lambda: for_all, lambda: for_all | others)


def unicode_property(name: str) -> Characters | None:
    """Characters of a general category of Unicode, or ASCII; None for any other name."""
    if name == "ASCII":
        return exactly(~_BEYOND_ASCII)
    if not _CATEGORIES.fullmatch(name):
        return None
    return Characters(
        lambda: of_category(name) - _unassigned(),
        lambda: of_category(name) | _unassigned() | _BEYOND_ASSIGNED,
    )


def _shifted(points: CodePoints, distance: int) -> CodePoints:
    return CodePoints(tuple((first + distance, last + distance) for first, last in points.ranges))


def _unassigned() -> CodePoints:
    """What a later Unicode may put in any category."""
    return of_category("Cn")


_UPPER = CodePoints.of([(ord("A"), ord("Z"))])
_LOWER = CodePoints.of([(ord("a"), ord("z"))])
_DIGITS = CodePoints.of([(ord("0"), ord("9"))])
_CASE = ord("a") - ord("A")
_BEYOND_ASCII = CodePoints.of([(0x80, 0x10FFFF)])
_BEYOND_ASSIGNED = CodePoints.of([(LAST_ASSIGNED + 1, 0x10FFFF)])
_CASES_OF_ASCII = CodePoints.listed("\u0130\u0131\u017f\u212a")
"""Dotted and dotless i, long s and the Kelvin sign: cases of i, s and k for some."""
_CASES_OF_OTHERS = _BEYOND_ASCII | CodePoints.listed("iIkKsS")

_WORD = _UPPER | _LOWER | _DIGITS | CodePoints.listed("_")
_SPACE = CodePoints.listed("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000") | CodePoints.of(
    [(0x2000, 0x200A)]
)
_SPACE_OF_SOME = _SPACE | CodePoints.listed("\x1c\x1d\x1e\x1f\u0085\ufeff")
_LINE_FEED = CodePoints.listed("\n")
_LINE_ENDS = CodePoints.listed("\n\r\u2028\u2029")

ANY = exactly(CodePoints.of([(0, 0x10FFFF)]))
NO_LINE_END = Characters(lambda: ~_LINE_ENDS, lambda: ~_LINE_FEED)
"""What a dot matches."""

_POSITIVE = {
    "d": Characters(lambda: _DIGITS, lambda: matched_by_python(r"\d") | _unassigned()),
    "w": Characters(lambda: _WORD, lambda: matched_by_python(r"\w") | _unassigned()),
    "s": Characters(lambda: _SPACE, lambda: _SPACE_OF_SOME),
}
SHORTHANDS = MappingProxyType(
    _POSITIVE | {name.upper(): ~positive for name, positive in _POSITIVE.items()}
)
"""Sets of characters such as digits, by the letter behind the backslash."""

_CATEGORIES = re.compile("C[cfo]?|L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?")
