"""Looks for the marks of a format in text that arrives in pieces."""

from collections.abc import Iterable, Sequence


def first_place(text: str, marks: Iterable[str]) -> int | None:
    """Where the first of some marks begins in a text; None where none is."""
    places = [place for mark in marks if (place := text.find(mark)) >= 0]
    return min(places, default=None)


def num_begun(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of a text that one of some marks begins with."""
    return max((_num_common(text, mark) for mark in marks), default=0)


def json_place(text: str, tokens: Sequence[str]) -> int | None:
    """Where some tokens of JSON end that a text begins with, whatever whitespace is around them.

    Returns:
        0 while the text may still come to begin so; None if it does not.
    """
    place = 0
    for token in tokens:
        while text[place : place + 1].isspace():
            place += 1
        rest = text[place : place + len(token)]
        if rest != token:
            return 0 if token.startswith(rest) else None
        place += len(token)
    return place


def divided(one: str, other: str) -> tuple[str, str]:
    """What two texts begin with, and the rest of the second."""
    pairs = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return other[:length], other[length:]


def _num_common(text: str, mark: str) -> int:
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
