"""Writes `propertyNames` as the grammar engine takes it, which does not know the keyword.

What the keys of an object may be is asked for again by an object that names them, or has a pattern
of them, and has no others. The engine keeps to both. In sandboxed processes.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NoReturn

from coordinator.constraint.pattern_syntax import PatternError, least_length, parse_pattern
from coordinator.constraint.refused_keyword import refuse
from coordinator.constraint.schema_formats import pattern_of_format

KEYWORD = "propertyNames"
_UNFOLLOWED = ("not", "if", "oneOf", "$dynamicRef", "$recursiveRef")
"""What may ask something of a string, beside what is read here."""

_MOST_CHARS = 999_999
"""Most characters of a key; no pattern counts further."""

_Names = tuple[str, ...]
_Keys = _Names | str | None
"""Some names, a pattern, or any string at all."""


def object_of_keys(
    wanted: object, where: str, schema_at: Callable[[str], object]
) -> dict[str, Any] | None:
    """A schema of the objects whose keys all conform to another schema.

    Args:
        wanted: What the keys conform to.
        where: The path to it.
        schema_at: What a reference in it leads to.

    Returns:
        None when every key conforms.

    Raises:
        ValueError: It asks for what cannot be written so; says what and where.
    """
    keys = _Reader(wanted, where, schema_at).keys()
    if keys is None:
        return None
    named = {"patternProperties" if isinstance(keys, str) else "properties": _all_of(keys)}
    return {**named, "additionalProperties": False}


def _all_of(keys: _Names | str) -> dict[str, bool]:
    return {keys: True} if isinstance(keys, str) else dict.fromkeys(keys, True)


class _Reader:
    def __init__(self, wanted: object, where: str, schema_at: Callable[[str], object]) -> None:
        self._wanted = wanted
        self._where = where
        self._schema_at = schema_at
        self._followed: list[str] = []

    def keys(self) -> _Keys:
        keys = self._of(self._wanted)
        if keys == ():
            self._refuse("no key conforms to it")
        return keys

    def _refuse(self, why: str) -> NoReturn:
        refuse(KEYWORD, self._wanted, self._where, why)

    def _of(self, schema: object) -> _Keys:
        """The keys that conform to a schema."""
        if isinstance(schema, bool):
            return None if schema else ()
        if not isinstance(schema, dict):
            self._refuse("it is no schema")
        for keyword in _UNFOLLOWED:
            if keyword in schema:
                self._refuse(f"it has {keyword}, which is not followed")
        kind = schema.get("type", "string")
        if "string" not in (kind if isinstance(kind, list) else (kind,)):
            return ()
        least, most = self._count(schema, "minLength"), self._count(schema, "maxLength")
        keys = self._all(tuple(self._parts(schema)))
        if isinstance(keys, tuple):
            longest = max(map(len, keys), default=0) if most is None else most
            return tuple(key for key in keys if (least or 0) <= len(key) <= longest)
        if keys is None:
            has_lengths = least or most is not None
            longest_text = "" if most is None else min(most, _MOST_CHARS)
            return f"(?s)^.{{{least or 0},{longest_text}}}$" if has_lengths else None
        if most is not None or (least or 0) > self._least_length(keys):
            self._refuse("of a pattern, a format and lengths, it may have one")
        return keys

    def _count(self, schema: dict[str, Any], name: str) -> int | None:
        count = schema.get(name)
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            self._refuse(f"{name} in it is no whole number")
        return count

    def _least_length(self, pattern: str) -> int:
        try:
            return least_length(parse_pattern(pattern))
        except PatternError as error:
            self._refuse(str(error))

    def _parts(self, schema: dict[str, Any]) -> Iterator[_Keys]:
        """The keys that each keyword allows, but for those of lengths."""
        if isinstance(reference := schema.get("$ref"), str):
            if reference in self._followed:
                self._refuse("it leads to itself")
            self._followed.append(reference)
            yield self._of(self._schema_at(reference))
            self._followed.pop()
        if isinstance(both := schema.get("allOf"), list):
            yield self._all(tuple(map(self._of, both)))
        if isinstance(choices := schema.get("anyOf"), list):
            yield self._any(tuple(map(self._of, choices)))
        if isinstance(values := schema.get("enum"), list):
            yield tuple(value for value in values if isinstance(value, str))
        if "const" in schema:
            yield (schema["const"],) if isinstance(schema["const"], str) else ()
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        if isinstance(form := schema.get("format"), str):
            try:
                yield pattern_of_format(form)
            except ValueError as error:
                self._refuse(str(error))

    def _all(self, parts: tuple[_Keys, ...]) -> _Keys:
        """The keys that are in each part."""
        names = [part for part in parts if isinstance(part, tuple)]
        patterns = {part for part in parts if isinstance(part, str)}
        if names and not patterns:
            common = frozenset(names[0]).intersection(*names[1:])
            return tuple(name for name in names[0] if name in common)
        if names or len(patterns) > 1:
            self._refuse("of names, a pattern and a format, it may have one")
        return next(iter(patterns), None)

    def _any(self, parts: tuple[_Keys, ...]) -> _Keys:
        """The keys that are in one of the parts at least."""
        if None in parts:
            return None
        names = [part for part in parts if isinstance(part, tuple)]
        if len(names) < len(parts):
            self._refuse("of several forms of keys, it may have one")
        return tuple(chain.from_iterable(names))
