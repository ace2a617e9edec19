"""Sets of characters, by their code points."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple, Self

_LAST = 0x10FFFF
_LAST_ASCII = 0x7F


class CodePoints(NamedTuple):
    """A set of characters: ranges with both ends inside, ascending and apart."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Self:
        """The code points in any of some ranges, which may overlap."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    @classmethod
    def listed(cls, characters: str) -> Self:
        """The characters of a string."""
        return cls.of((ord(character), ord(character)) for character in characters)

    def __bool__(self) -> bool:
        """True when there are any."""
        return bool(self.ranges)

    def __or__(self, other: "CodePoints") -> "CodePoints":
        """The code points in either set."""
        return CodePoints.of((*self.ranges, *other.ranges))

    def __invert__(self) -> "CodePoints":
        """All others."""
        gaps: list[tuple[int, int]] = []
        start = 0
        for first, last in self.ranges:
            if first > start:
                gaps.append((start, first - 1))
            start = last + 1
        if start <= _LAST:
            gaps.append((start, _LAST))
        return CodePoints(tuple(gaps))

    def __and__(self, other: "CodePoints") -> "CodePoints":
        """The code points in both sets."""
        return ~(~self | ~other)

    def __sub__(self, other: "CodePoints") -> "CodePoints":
        """The code points that the other set has not."""
        return ~(~self | other)

    def filled(self, num_ranges: int) -> "CodePoints":
        """More characters in fewer ranges: the narrowest gaps between them are filled.

        Args:
            num_ranges: At most as many are left, beside those of ASCII, which has no gap filled.
        """
        others = [one for one in self.ranges if one[1] > _LAST_ASCII]
        gaps = [(after, first - 1) for (_, after), (first, _) in pairwise(others)]
        gaps.sort(key=lambda gap: gap[1] - gap[0])
        return CodePoints.of((*self.ranges, *gaps[: max(0, len(others) - num_ranges)]))


LAST_ASSIGNED = 0x3FFFF
"""Above lie no letters, digits or spaces: private use, tags and selectors alone."""


@cache
def matched_by_python(expression: str) -> CodePoints:
    r"""What one of the classes of Python's own expressions matches, such as `\w`."""
    found = re.finditer(f"{expression}+", _assigned())
    return CodePoints(tuple((match.start(), match.end() - 1) for match in found))


@cache
def of_category(name: str) -> CodePoints:
    """The characters of a general category of Unicode, such as L or Lu, up to `LAST_ASSIGNED`."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for category, same in groupby(map(unicodedata.category, _assigned())):
        length = sum(1 for _ in same)
        if category.startswith(name):
            ranges.append((start, start + length - 1))
        start += length
    return CodePoints.of(ranges)


def _assigned() -> str:
    return "".join(map(chr, range(LAST_ASSIGNED + 1)))
