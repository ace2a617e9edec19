"""Bounds what is said of a wrong request: a list ends at its first wrong item.

Pydantic tells everything that is wrong, each as a record of its own, and only one is shown: half a
million wrong items took four gigabytes and twenty seconds.
"""

from collections.abc import Callable

from pydantic_core import PydanticCustomError

from stagecoach.contract.errors import InvalidArgumentError

MAX_UNKNOWN_FIELDS = 16
"""Most unknown fields of one request that are looked at; an error shows one of them."""


def bound_errors(schema: object) -> None:
    """Changes a core schema, so that few errors come of it however long its lists are.

    A list ends at its first wrong item, and a mapping with more items than it may have before the
    first is looked at. What they accept is the same as before.

    Args:
        schema: Schema of pydantic's core, a part of one, or anything inside; changed in place.
    """
    if isinstance(schema, list | tuple):
        for part in schema:
            bound_errors(part)
        return
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "list":
        schema["fail_fast"] = True
    is_schema = isinstance(schema.get("type"), str)  # else the fields of one, by name
    for name, part in schema.items():
        if not (is_schema and name in _NO_SCHEMAS):
            bound_errors(part)
    if schema.get("type") == "dict" and schema.get("max_length") is not None:
        inner = dict(schema)
        schema.clear()
        schema |= {
            "type": "function-before",
            "function": {"type": "no-info", "function": _length_check(inner["max_length"])},
            "schema": inner,
        }


class UnknownFields:
    """Counts the fields of one request that are not known; the context of its validation."""

    def __init__(self) -> None:
        self._num_seen = 0

    def add(self) -> None:
        """Counts one.

        Raises:
            InvalidArgumentError: There are so many that the rest is not looked at.
        """
        self._num_seen += 1
        if self._num_seen > MAX_UNKNOWN_FIELDS:
            raise InvalidArgumentError(
                f"more than {MAX_UNKNOWN_FIELDS} fields are not fields of this request"
            )


_NO_SCHEMAS = frozenset({"metadata", "default", "expected", "function", "config", "cls"})
"""Keys of a core schema whose values may look like one."""


def _length_check(max_length: int) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > max_length:
            raise PydanticCustomError(
                "too_long",
                "Dictionary should have at most {max_length} items after validation, not"
                " {actual_length}",
                {"max_length": max_length, "actual_length": len(value)},
            )
        return value

    return check
