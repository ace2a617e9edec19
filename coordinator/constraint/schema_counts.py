"""Counts in schemas: of characters, items and members, as the grammar engine reads them."""

from typing import Any

from coordinator.constraint.refused_keyword import refuse

_MOST = 2**31 - 1
"""The engine takes no more for characters. No output is as long."""

_LEAST = ("minLength", "minItems", "minProperties")
_MOSTS = ("maxLength", "maxItems", "maxProperties")


def rewrite_counts(schema: dict[str, Any], path: str) -> bool:
    """Writes the counts of one schema as the engine takes them.

    Args:
        schema: It alone, not those in it.
        path: To it.

    Returns:
        True when the schema was changed.

    Raises:
        ValueError: More is wanted than any output has; says of what, and where.
    """
    is_changed = False
    for name in (*_LEAST, *_MOSTS):
        count = schema.get(name)
        if isinstance(count, float) and count.is_integer():
            schema[name] = int(count)  # 1.0 is a whole number to JSON Schema
            is_changed = True
        elif not isinstance(count, int):
            continue  # the engine says what it must be
        if schema[name] > _MOST:
            if name in _LEAST:
                refuse(name, count, f"{path}/{name}", f"it is more than {_MOST}")
            schema[name] = _MOST
            is_changed = True
    return is_changed
