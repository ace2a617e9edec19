"""Schemas as the grammar engine follows them exactly: what it gets wrong is rewritten or refused.

The engine holds numbers as doubles and reads some of them a bit off, and some of its formats allow
more than their specifications. What is rewritten allows no document that the schema does not; what
cannot be is refused, with the keyword, its value and the path to it. In sandboxed processes.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NamedTuple, NoReturn, TypeGuard

from coordinator.constraint import schema_property_names as property_names
from coordinator.constraint.number_guard import MAX_DIGITS
from coordinator.constraint.object_keys import (
    UNSPELLED,
    check_characters,
    check_num_keys,
    takes_keys_apart,
)
from coordinator.constraint.refused_keyword import escaped, refuse
from coordinator.constraint.schema_counts import rewrite_counts
from coordinator.constraint.schema_dialect import rewrite_dialect
from coordinator.constraint.schema_formats import rewrite_format
from coordinator.constraint.schema_keywords import add_conditions, inner_schemas
from coordinator.constraint.schema_patterns import rewrite_patterns
from coordinator.constraint.schema_references import References

_MAX_EXPONENT = 22
"""The largest power of ten that a double holds exactly."""

_MAX_INTEGER = 2**53
"""A double keeps all up to it. Bounds beyond 64 bits are that of the last one to the engine."""

_MAX_LITERAL = 2**63 - 1
"""The engine writes a whole number beyond it as the last one, where the type is integer."""

_MAX_STEP = 2**32 - 1
"""The largest step of `multipleOf`, written without a point."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LITERALS = ("const", "enum")
_ENGINE_OPTIONS = "x-guidance"
"""Would change white space and separators, and what the engine takes for exact."""


class Schema(NamedTuple):
    """A schema that may be compiled."""

    text: str
    has_decimals: bool
    """True when a keyword holds a number with a fraction."""
    takes_keys_apart: bool
    """True when an object's keys must have one spelling each."""
    originals: Mapping[str, str]
    """Patterns as the client wrote them, by what is written for them."""


class _Float(float):
    """A number that was written with a fraction or an exponent, and how."""

    text: str

    def __new__(cls, text: str) -> "_Float":
        number = super().__new__(cls, text)
        number.text = text
        return number


def prepare_schema(text: str) -> Schema:
    """Rewrites a schema so that the engine follows it exactly.

    Args:
        text: JSON that was checked to be an object or a boolean.

    Returns:
        The same text when there is nothing to rewrite.

    Raises:
        ValueError: A keyword has a value that the engine would not keep to; says which and where.
    """
    schema = json.loads(text, parse_float=_Float, parse_constant=_refuse_constant)
    walk = _Walk(schema)
    try:
        walk.check_all()
        if walk.has_decimals:
            walk.open_exclusive_bounds()
    except ArithmeticError as error:
        raise ValueError("a number is too large for any computer") from error
    written = json.dumps(schema, ensure_ascii=False) if walk.is_changed else text
    return Schema(written, walk.has_decimals, walk.takes_keys_apart, walk.originals)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class _Walk:
    """One walk over a schema, which it changes."""

    def __init__(self, document: object) -> None:
        self.has_decimals = False
        self.takes_keys_apart = False
        self.is_changed = False
        self.originals: dict[str, str] = {}
        self._document = document
        self._references = References(document)
        self._checked: dict[str, dict[str, Any]] = {}
        """Schemas by their paths."""
        self._literals: list[tuple[object, str]] = []
        self._exclusive: list[tuple[dict[str, Any], str, str]] = []

    def check_all(self) -> None:
        """Checks the document, and what is referred to in it."""
        self._check(self._document, "#", "#")
        has_more = True
        while has_more:
            resolved = self._references.resolve()
            self.is_changed |= resolved.is_changed
            for schema, path, base in resolved.targets:
                self._check(schema, path, base)
            has_more = bool(resolved.targets)
        for path, checked in tuple(self._checked.items()):
            if property_names.KEYWORD in checked:
                self._rewrite_property_names(checked, path)
        if self.takes_keys_apart:
            for value, where in self._literals:
                check_characters(value, where)
        unspelled = UNSPELLED if self.takes_keys_apart else ""
        for path, checked in self._checked.items():
            # In this order: the pattern of a format is written for the engine.
            has_patterns = rewrite_patterns(checked, path, unspelled, self.originals)
            has_format = rewrite_format(checked)
            self.is_changed |= has_patterns or has_format

    def _rewrite_property_names(self, schema: dict[str, Any], path: str) -> None:
        """Asks for the keys of an object in another way."""
        keyword = property_names.KEYWORD
        where = f"{path}/{keyword}"
        keys = property_names.object_of_keys(schema[keyword], where, self._references.schema_at)
        del schema[keyword]
        self.is_changed = True
        if keys is not None:
            self._check(keys, path + add_conditions(schema, keys), "#")

    def _check(self, schema: object, path: str, base: str) -> None:
        """Checks a schema and those in it; rewrites what has a simple equivalent.

        Args:
            schema: Boolean, or changed.
            path: To it.
            base: To the schema that its references start from.
        """
        if not isinstance(schema, dict) or path in self._checked:
            return
        self._checked[path] = schema
        self.is_changed |= rewrite_dialect(schema, path)
        base = self._references.add(schema, path, base)
        for pointer, inner in tuple(inner_schemas(schema)):
            self._check(inner, path + pointer, base)
        for name, value in tuple(schema.items()):
            where = f"{path}/{escaped(name)}"
            if name in _BOUNDS:
                self._check_bound(schema, name, where)
            elif name in _LITERALS:
                self._literals.append((value, where))
                for number in _numbers(value):
                    _check_number(number, where)
            elif name == _ENGINE_OPTIONS:
                refuse(name, value, where, "the whole coordinator has the same options")
        self.is_changed |= rewrite_counts(schema, path)
        check_num_keys(schema, path)
        self.takes_keys_apart |= takes_keys_apart(schema)
        if schema.get("uniqueItems") is False:  # asks for nothing, and is not known to the engine
            del schema["uniqueItems"]
            self.is_changed = True

    def open_exclusive_bounds(self) -> None:
        """Replaces exclusive bounds that are whole numbers by inclusive ones a little inside.

        The engine takes the bound itself when the other one lies less than 1 away.
        """
        for schema, name, where in self._exclusive:
            is_lower = name == "exclusiveMinimum"
            plain = "minimum" if is_lower else "maximum"
            bound = int(schema[name])
            num_digits = len(str(abs(bound)))
            step = Decimal(1).scaleb(num_digits - MAX_DIGITS if bound else -_MAX_EXPONENT)
            if step >= 1:
                refuse(name, bound, where, "with bounds that are no whole numbers")
            inner = Decimal(bound) + (step if is_lower else -step)
            present = schema.get(plain)
            if _is_number(present):
                both = (inner, Decimal(_text(present)))
                inner = max(both) if is_lower else min(both)
            schema[plain] = _number(inner)
            del schema[name]
            self.is_changed = True

    def _check_bound(self, schema: dict[str, Any], name: str, where: str) -> None:
        value = schema[name]
        if not _is_number(value):
            return  # the engine says what it must be
        exact = Decimal(_text(value))
        if name == "multipleOf":
            _check_step(value, where)
        elif abs(exact) > _MAX_INTEGER or not _survives(exact):
            exact = _tightened(exact, name, where)
            schema[name] = _number(exact)
            self.is_changed = True
        if exact != exact.to_integral_value():
            self.has_decimals = True
        elif name.startswith("exclusive"):
            self._exclusive.append((schema, name, where))


def _check_step(step: int | float, where: str) -> None:
    """Refuses steps that the engine does not hold as digits behind a point."""
    _check_number(step, where)
    digits, num_places = float(step), 0
    while digits > 0 and not digits.is_integer():  # as the engine reads it
        digits *= 10
        num_places += 1
    if digits > _MAX_STEP or Decimal(digits).scaleb(-num_places) != Decimal(_text(step)):
        refuse("multipleOf", _text(step), where, "the engine does not hold it exactly")


def _check_number(number: int | float, where: str) -> None:
    """Refuses numbers that the engine would not write as they are written."""
    exact = Decimal(_text(number))
    name = where.rpartition("/")[2]
    if not _survives(exact):
        refuse(name, _text(number), where, f"it has more than {MAX_DIGITS} digits, or is too large")
    if abs(exact) > _MAX_LITERAL:
        refuse(name, _text(number), where, f"it is beyond {_MAX_LITERAL}")


def _survives(exact: Decimal) -> bool:
    """True when a double keeps a number as it is written."""
    if exact == exact.to_integral_value() and abs(exact) <= _MAX_INTEGER:
        return True
    _, digits, exponent = exact.as_tuple()
    assert isinstance(exponent, int), "JSON has finite numbers alone"
    written = "".join(map(str, digits)).strip("0")
    num_zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return len(written) <= MAX_DIGITS and abs(exponent + num_zeros) <= _MAX_EXPONENT


def _tightened(bound: Decimal, name: str, where: str) -> Decimal:
    """The next bound inside that a double keeps as it is written."""
    is_lower = name in ("minimum", "exclusiveMinimum")
    outermost = -_MAX_INTEGER if is_lower else _MAX_INTEGER
    if bound < outermost if is_lower else bound > outermost:
        return Decimal(outermost)
    if abs(bound) > _MAX_INTEGER:
        refuse(name, bound, where, f"it is beyond {_MAX_INTEGER}")
    rounding = ROUND_CEILING if is_lower else ROUND_FLOOR
    rounded = Context(prec=MAX_DIGITS, rounding=rounding).create_decimal(bound)
    if rounded.adjusted() >= MAX_DIGITS - _MAX_EXPONENT:
        return rounded
    smallest = Decimal(1).scaleb(-_MAX_EXPONENT)
    return rounded.quantize(smallest, rounding=rounding)


def _number(exact: Decimal) -> "int | _Float":
    if exact == exact.to_integral_value():
        return int(exact)
    return _Float(format(exact, "f"))


def _numbers(value: object) -> Iterator[int | float]:
    if _is_number(value):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(number: int | float) -> str:
    return number.text if isinstance(number, _Float) else str(number)
