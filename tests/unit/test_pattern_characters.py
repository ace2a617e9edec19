"""Classes of patterns match what all readers of patterns agree on."""

import re
import sys

import jsonschema_rs
import pytest

from coordinator.constraint.code_points import CodePoints
from coordinator.constraint.pattern_characters import Characters
from coordinator.constraint.pattern_syntax import parse_pattern

CHARACTERS = [
    chr(code)
    for code in (*range(0x3100), *range(0xFE00, 0x10400), 0x1F600, 0x20000, 0xE0100, 0x10FFFF)
]


def has(points: CodePoints, character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in points.ranges)


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", r"[^\d]", r"[^\W_]", r"[^\S-]", "(?s)."),
        *("(?i)[a-z]", "(?i)[^a-z]", "(?i)[^k]", "(?i)[éa]", "(?i)[^é]", "(?i)[^\u0130]"),
        *(r"[\x00-\x1f]", r"[^\x00-\x1f]", '[^"]', r"[\w-.]"),
    ],
)
def test_a_class_has_what_every_reader_takes(pattern: str) -> None:
    characters = parse_pattern(pattern)
    assert isinstance(characters, Characters)
    for_all, for_some = characters.for_all(), characters.for_some()
    flags, body = re.fullmatch(r"(\(\?[is]\))?(.*)", pattern, re.DOTALL).groups("")  # type: ignore[union-attr]
    if pattern == r"[\w-.]":  # no reader but JavaScript's, which takes the hyphen for one
        body = r"[\w\-.]"
    python = re.compile(flags + body)
    validator = jsonschema_rs.validator_for({"pattern": f"{flags}^{body}$"})
    for character in CHARACTERS:
        readings = {python.fullmatch(character) is not None, validator.is_valid(character)}
        assert not has(for_all, character) or readings == {True}, hex(ord(character))
        assert has(for_some, character) or readings == {False}, hex(ord(character))


@pytest.mark.parametrize("pattern", ["(?i)[^a-z]", r"\S", r"\D", "."])
def test_few_characters_are_left_out(pattern: str) -> None:
    characters = parse_pattern(pattern)
    assert isinstance(characters, Characters)
    assert sum(last - first + 1 for first, last in characters.for_all().ranges) > 10**6


def test_sets_of_characters_are_sets() -> None:
    letters = CodePoints.of([(ord("m"), ord("z")), (ord("a"), ord("n")), (ord("c"), ord("d"))])
    assert letters.ranges == ((ord("a"), ord("z")),)
    assert (letters - CodePoints.listed("bc")).ranges == ((97, 97), (100, 122))
    assert (letters & CodePoints.listed("bcB")).ranges == ((98, 99),)
    assert ~~letters == letters
    assert (letters | ~letters).ranges == ((0, sys.maxunicode),)
    assert not letters & ~letters
    assert not CodePoints(())
