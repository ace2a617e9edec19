r"""Reads the patterns of JSON schemas: regular expressions of ECMA-262.

Its flavour without the `u` flag, as far as other readers (Python's `re` and the `regex` of Rust,
which validators are built on) give it the same meaning or none. What they read as different
languages, and what is no regular language, is refused by name.
"""

import re
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NoReturn

from coordinator.constraint.code_points import CodePoints
from coordinator.constraint.pattern_characters import (
    ANY,
    NO_LINE_END,
    SHORTHANDS,
    Characters,
    any_of,
    exactly,
    in_either_case,
    unicode_property,
)

MAX_NESTED_GROUPS = 50


class PatternError(ValueError):
    """A pattern that is not taken; says what in it."""


class Anchor(Enum):
    """A place in a text."""

    START = "^"
    END = "$"


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Choice:
    """Any of some."""

    branches: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same several times, from `least` to `most`; without a bound when that is None."""

    item: "Node"
    least: int
    most: int | None


Node = Characters | Anchor | Sequence | Choice | Repeat


def parse_pattern(text: str) -> Node:
    """Reads a pattern.

    Raises:
        PatternError: It is malformed, or has what is read in more than one way or not at all.
    """
    return _Parser(text).parse()


def parse_conditions(text: str) -> tuple[Node, ...]:
    """Reads a pattern that may begin with looks ahead, such as `^(?=.*[0-9])(?=.*[a-z]).{8,}$`.

    Returns:
        What a text must all match: what is looked for from the start, and the pattern itself.

    Raises:
        PatternError: As `parse_pattern`.
    """
    return _Parser(text).parse_conditions()


def least_length(node: Node) -> int:
    """Characters of the shortest text that a pattern matches."""
    match node:
        case Characters():
            return 1
        case Anchor():
            return 0
        case Repeat(item, least):
            return least * least_length(item)
        case Sequence(items):
            return sum(map(least_length, items))
        case Choice(branches):
            return min(map(least_length, branches))


_FLAGS = re.compile(r"\(\?([is]+)\)")
_LOOK = re.compile(r"\(\?=")
_LOOKS_FROM_START = re.compile(r"\^(?=\(\?=)")
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>|(?!\?))")
_COUNT = re.compile(r"\{([0-9]{1,6})(?:(,)([0-9]{0,6}))?\}")
_NO_COUNT = re.compile(r"\{[0-9]*,?[0-9]*\}")
_AMBIGUOUS = re.compile(r"&&|~~|\[:\^?[a-z]+:\]")
"""Operators of sets and names of POSIX; to some readers, the characters that they are."""
_SPECIAL = re.compile(r"\(\?(?:<[=!]|P?<|P[=>]|[a-zA-Z^-]+[:)]|.)?", re.DOTALL)
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})")
_PROPERTY = re.compile(r"[pP]\{([^}]*)\}")
_CONTROLS = MappingProxyType({"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"})
_SIMPLE_COUNTS = MappingProxyType({"*": (0, None), "+": (1, None), "?": (0, 1)})


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._index = 0
        self._num_open = 0
        self._dot = NO_LINE_END
        self._literal = exactly

    def parse(self) -> Node:
        self._take_flags()
        return self._whole(self._choice())

    def _take_flags(self) -> None:
        if flags := self._take(_FLAGS):
            self._dot = ANY if "s" in flags[1] else NO_LINE_END
            self._literal = in_either_case if "i" in flags[1] else exactly

    def _whole(self, node: Node) -> Node:
        """Returns a node, after which the pattern must end."""
        if self._next() == "|":
            raise PatternError("it has (?= in one of several branches, which is not followed")
        if self._index < len(self._text):
            raise PatternError("a ) closes no group")
        return node

    def parse_conditions(self) -> tuple[Node, ...]:
        self._take_flags()
        if not self._take(_LOOKS_FROM_START):
            return (self._whole(self._choice()),)
        conditions: list[Node] = []
        while self._take(_LOOK):
            conditions.append(Sequence((Anchor.START, self._closed())))
        return (*conditions, self._whole(Sequence((Anchor.START, self._sequence()))))

    def _take(self, expected: re.Pattern[str]) -> re.Match[str] | None:
        if found := expected.match(self._text, self._index):
            self._index = found.end()
        return found

    def _next(self) -> str:
        """The next character, which is not taken; empty at the end."""
        return self._text[self._index : self._index + 1]

    def _choice(self) -> Node:
        branches = [self._sequence()]
        while self._next() == "|":
            self._index += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._next() not in ("", "|", ")"):
            items.append(self._repeated(self._item()))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self) -> Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char in _SIMPLE_COUNTS or _NO_COUNT.match(self._text, self._index):
            raise PatternError(f"{char} repeats nothing")
        self._index += 1
        match char:
            case "^" | "$":
                return Anchor(char)
            case ".":
                return self._dot
            case "[":
                return self._class()
            case "\\":
                part = self._escaped(in_class=False)
                return part if isinstance(part, Characters) else self._single(part)
            case _:
                return self._single(char)

    def _single(self, char: str) -> Characters:
        return self._literal(CodePoints.listed(char))

    def _group(self) -> Node:
        if self._take(_GROUP) is None:
            special = _SPECIAL.match(self._text, self._index)
            raise PatternError(f"it has {special[0] if special else '('}, which is not followed")
        return self._closed()

    def _closed(self) -> Node:
        """What stands in a group, and its end."""
        self._num_open += 1
        if self._num_open > MAX_NESTED_GROUPS:
            raise PatternError(f"its groups are nested more than {MAX_NESTED_GROUPS} deep")
        node = self._choice()
        if self._next() != ")":
            raise PatternError("a group is not closed")
        self._index += 1
        self._num_open -= 1
        return node

    def _repeated(self, item: Node) -> Node:
        start = self._index
        if (char := self._next()) in _SIMPLE_COUNTS:
            self._index += 1
            least, most = _SIMPLE_COUNTS[char]
        elif count := self._take(_COUNT):
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
        elif unread := _NO_COUNT.match(self._text, start):
            raise PatternError(f"{unread[0]} is no count of repetitions to every reader")
        else:
            return item
        if self._next() == "?":  # which of several matches is found makes no difference
            self._index += 1
        written = self._text[start : self._index]
        if isinstance(item, Anchor):
            raise PatternError(f"{item.value}{written} repeats an anchor")
        if most is not None and most < least:
            raise PatternError(f"{written} runs backwards")
        if self._next() in _SIMPLE_COUNTS or _COUNT.match(self._text, self._index):
            raise PatternError(f"{written}{self._next()} repeats a repetition")
        return Repeat(item, least, most)

    def _class(self) -> Characters:
        is_negated = self._next() == "^"
        self._index += is_negated
        if self._next() == "]":
            raise PatternError(r"a class that begins with ] has two readings; write \]")
        members: list[Characters] = []
        while (char := self._next()) != "]":
            if not char:
                raise PatternError("a class is not closed")
            members.extend(self._member())
        self._index += 1
        return ~any_of(members) if is_negated else any_of(members)

    def _member(self) -> list[Characters]:
        """A character, a range or a shorthand of a class."""
        first = self._class_part()
        if self._next() != "-" or self._text[self._index + 1 : self._index + 2] in ("", "]"):
            return [self._one(first)]
        self._index += 1
        last = self._class_part()
        if isinstance(first, str) and isinstance(last, str):
            if first > last:
                raise PatternError(f"the range {first}-{last} runs backwards")
            return [self._literal(CodePoints.of([(ord(first), ord(last))]))]
        if last == "-":
            raise PatternError("-- in a class has two readings")
        if isinstance(first, str):
            raise PatternError(f"the range from {first} to a class has no end")
        # No range begins with a shorthand: the hyphen is one.
        return [self._one(first), self._single("-"), self._one(last)]

    def _one(self, part: str | Characters) -> Characters:
        return self._single(part) if isinstance(part, str) else part

    def _class_part(self) -> str | Characters:
        if ambiguous := self._take(_AMBIGUOUS):
            raise PatternError(f"{ambiguous[0]} in a class has two readings")
        char = self._next()
        self._index += 1
        return self._escaped(in_class=True) if char == "\\" else char

    def _escaped(self, *, in_class: bool) -> str | Characters:
        """What a backslash and what follows stand for."""
        char = self._next()
        if found := self._take(_CODE):
            return _character(found)
        if found := self._take(_PROPERTY):
            characters = unicode_property(found[1])
            if characters is None:
                self._refuse_escape(found[0])
            return characters if char == "p" else ~characters
        self._index += 1
        if char in SHORTHANDS:
            return SHORTHANDS[char]
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "b" and in_class:
            return "\b"
        if char == "0" and not self._next().isdigit():
            return "\0"
        if not char or (char.isascii() and char.isalnum()) or (char in "<>" and not in_class):
            self._refuse_escape(char)
        return char

    def _refuse_escape(self, escaped: str) -> NoReturn:
        anchor = {"A": "; write ^", "Z": "; write $", "z": "; write $"}.get(escaped, "")
        raise PatternError(f"it has \\{escaped}, which is not followed{anchor}")


def _character(found: re.Match[str]) -> str:
    """The character of a hexadecimal code."""
    code = int(found[1] or found[2], 16)
    if 0xD800 <= code <= 0xDFFF:
        raise PatternError(f"\\{found[0]} is half a character")
    return chr(code)
