"""Writes the patterns of schemas as the grammar engine keeps to them.

What the engine gets is a subset of what every validator takes. It allows every escape of JSON where
a class has all control characters, the escapes of `"` and the backslash included: so no pattern is
left U+0000, the one that nobody writes. It also has no anchors but at the ends, and no search.
"""

from collections.abc import Iterator
from typing import Any

from coordinator.constraint.code_points import CodePoints
from coordinator.constraint.known_patterns import SAME_MEANING
from coordinator.constraint.object_keys import UNSPELLED
from coordinator.constraint.pattern_characters import ANY, Characters, exactly
from coordinator.constraint.pattern_syntax import (
    Anchor,
    Choice,
    Node,
    PatternError,
    Repeat,
    Sequence,
    parse_conditions,
    parse_pattern,
)
from coordinator.constraint.refused_keyword import escaped, refuse
from coordinator.constraint.schema_keywords import add_conditions

_NOTHING = CodePoints(())
_NUL = CodePoints.listed("\0")
_LINE_FEED = CodePoints.listed("\n")
_MAX_BARRED = 64
"""Ranges of characters that keys may not have. The engine looks for them anywhere in a key, and
builds too much for some hundreds."""

_SURROGATES = CodePoints.of([(0xD800, 0xDFFF)])
"""No characters, and none to the engine."""


def rewrite_patterns(
    schema: dict[str, Any], path: str, unspelled: str, originals: dict[str, str]
) -> bool:
    """Rewrites `pattern` and the keys of `patternProperties` of one schema.

    Args:
        schema: It alone, not those in it.
        path: To it.
        unspelled: Characters that no string of the document may have.
        originals: Gets each pattern as it was, by what is written for it.

    Returns:
        True when the schema was changed.

    Raises:
        ValueError: A pattern is not taken; says which, where, and what in it.
    """
    is_changed = False
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            writer = _Writer(_NUL | CodePoints.listed(unspelled))
            nodes = parse_conditions(SAME_MEANING.get(pattern, pattern))
            *conditions, schema["pattern"] = map(writer.whole, nodes)
        except PatternError as error:
            refuse("pattern", pattern, f"{path}/pattern", str(error))
        originals[schema["pattern"]] = pattern
        if conditions:
            add_conditions(schema, *({"pattern": condition} for condition in conditions))
        is_changed = True
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and patterns:
        _rewrite_keys(schema, patterns, f"{path}/patternProperties", originals)
        is_changed = True
    return is_changed


def _rewrite_keys(
    schema: dict[str, Any], patterns: dict[str, object], path: str, originals: dict[str, str]
) -> None:
    """Rewrites the patterns of keys.

    A key must not be written that only some validators find a pattern in: for the others it has
    another schema. So the characters that they differ in are taken out of every pattern, and keys
    with them have the schema false. To Python, `$` also stands before a line feed at the end.
    """
    nodes: dict[str, Node] = {}
    disputed = _NOTHING
    for pattern in patterns:
        try:
            nodes[pattern] = parse_pattern(pattern)
        except PatternError as error:
            refuse("patternProperties", pattern, f"{path}/{escaped(pattern)}", str(error))
        for characters in _characters(nodes[pattern]):
            disputed |= characters.for_some() - characters.for_all()
        if _has_anchor(nodes[pattern], Anchor.END):
            disputed |= _LINE_FEED
    named = _NOTHING
    for name in _names(schema):
        named |= CodePoints.listed(name)
        if named & (disputed | _NUL):
            refuse("patternProperties", list(patterns), path, f"validators differ in {name!r}")
    barred = _NOTHING
    if schema.get("additionalProperties") is not False:
        # Other keys beside patterns are spelled without \u: some characters are in none anyway.
        barred = disputed.filled(_MAX_BARRED) - named - CodePoints.listed(UNSPELLED)
    agreed = _Writer(disputed | barred | _NUL)
    written: dict[str, object] = {}
    for pattern, node in nodes.items():
        try:
            rewritten = agreed.whole(node)
        except PatternError as error:
            refuse("patternProperties", pattern, f"{path}/{escaped(pattern)}", str(error))
        originals[rewritten] = pattern
        same = [written[rewritten]] if rewritten in written else []
        written[rewritten] = {"allOf": [*same, patterns[pattern]]} if same else patterns[pattern]
    if barred:
        anything = Repeat(ANY, 0, None)
        some = Sequence((anything, exactly(barred), anything))
        written[_Writer(_NOTHING).anchored(some)] = False
    schema["patternProperties"] = written


def _names(schema: dict[str, Any]) -> Iterator[str]:
    """The keys that a schema names."""
    for keyword in ("properties", "required"):
        names = schema.get(keyword)
        if isinstance(names, dict | list):
            yield from (name for name in names if isinstance(name, str))


def _characters(node: Node) -> Iterator[Characters]:
    match node:
        case Characters():
            yield node
        case Repeat(item):
            yield from _characters(item)
        case Sequence(parts) | Choice(parts):
            for part in parts:
                yield from _characters(part)


class _Writer:
    """Writes patterns in the syntax of the engine, which is Rust's.

    Args:
        left_out: Characters that no class has.
    """

    def __init__(self, left_out: CodePoints) -> None:
        self._left_out = left_out | _SURROGATES
        self._anything = f"{self._class(ANY)}*"

    def whole(self, node: Node) -> str:
        """A pattern that is searched for, as one that matches the whole text.

        Raises:
            PatternError: It has an anchor elsewhere than at an end, or nothing that can be written.
        """
        return f"^(?:{self._ends(node, self._anything, self._anything)})$"

    def anchored(self, node: Node) -> str:
        """A pattern without anchors that matches the whole text."""
        return f"^(?:{self._inner(node)})$"

    def _ends(self, node: Node, before: str | None, after: str | None) -> str:
        """What may lie at an end of the text.

        Args:
            node: Node of the pattern.
            before: What to write in front where it asks for no start; None where none can be.
            after: What to write behind where it asks for no end; None where none can be.
        """
        if isinstance(node, Choice):
            branches = (self._ends(branch, before, after) for branch in node.branches)
            return f"(?:{'|'.join(branches)})"
        items = node.items if isinstance(node, Sequence) else (node,)
        while before is not None and items[:1] == (Anchor.START,):
            before, items = "", items[1:]
        while after is not None and items[-1:] == (Anchor.END,):
            after, items = "", items[:-1]
        if not any(_has_anchor(item, *Anchor) for item in items):
            return f"{before or ''}{self._inner(Sequence(items))}{after or ''}"
        if len(items) == 1:
            if not isinstance(items[0], Sequence | Choice):
                raise PatternError("it has an anchor that is not at an end")
            return self._ends(items[0], before, after)
        *middle, last = items[1:]
        inner = (self._ends(item, None, None) for item in middle)
        return "".join((self._ends(items[0], before, None), *inner, self._ends(last, None, after)))

    def _inner(self, node: Node) -> str:
        match node:
            case Characters():
                return self._class(node)
            case Sequence(items):
                return "".join(map(self._inner, items))
            case Choice(branches):
                return f"(?:{'|'.join(map(self._inner, branches))})"
            case Repeat(item, least, most):
                return f"(?:{self._inner(item)}){{{least},{'' if most is None else most}}}"
            case Anchor():
                raise AssertionError("anchors are at the ends")

    def _class(self, characters: Characters) -> str:
        points = characters.for_all() - self._left_out
        if not points:
            raise PatternError(
                "it has a character that validators differ in or that is not written"
            )
        ((first, last), *others) = points.ranges
        if first == last and not others:
            return _written(first)
        ranges = (f"{_written(first)}-{_written(last)}" for first, last in points.ranges)
        return f"[{''.join(ranges)}]"


def _has_anchor(node: Node, *anchors: Anchor) -> bool:
    match node:
        case Anchor():
            return node in anchors
        case Repeat(item):
            return _has_anchor(item, *anchors)
        case Sequence(parts) | Choice(parts):
            return any(_has_anchor(part, *anchors) for part in parts)
        case Characters():
            return False


def _written(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
