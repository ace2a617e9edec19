"""Which keywords of a JSON schema hold schemas, and which hold data that may look like one."""

from collections.abc import Iterator
from typing import Any

from coordinator.constraint.refused_keyword import escaped

MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords that hold schemas by names, which may be those of keywords."""

LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
"""Keywords that may hold a list of schemas."""

SINGLES = frozenset(
    {
        *("items", "additionalItems", "unevaluatedItems", "contains"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("not", "if", "then", "else", "contentSchema"),
    }
)
"""Keywords that may hold one schema."""

DATA = frozenset(
    {"const", "enum", "default", "example", "examples", "title", "description", "$comment"}
)
"""Keywords that hold no schema, whatever theirs looks like."""


def inner_schemas(schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What a schema holds as schemas itself, each with its pointer from there."""
    for keyword, value in schema.items():
        pointer = f"/{escaped(keyword)}"
        if keyword in MAPS and isinstance(value, dict):
            for name, inner in value.items():
                yield f"{pointer}/{escaped(name)}", inner
        elif keyword in LISTS and isinstance(value, list):
            for index, inner in enumerate(value):
                yield f"{pointer}/{index}", inner
        elif keyword in SINGLES:
            yield pointer, value


def add_conditions(schema: dict[str, Any], *conditions: dict[str, Any]) -> str:
    """Asks for more of what a schema is of; returns the pointer to the first of the conditions."""
    both = schema.get("allOf")
    others = both if isinstance(both, list) else []
    schema["allOf"] = [*others, *conditions]
    return f"/allOf/{len(others)}"
