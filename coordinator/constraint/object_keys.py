r"""Keys of objects, which the grammar engine compares as they are spelled, not as they are read.

A key that is not named in a schema is any string but the spellings of those that are: it may be
spelled with `\u0061` where `a` is named, and a parser then reads the name a second time. Without
`\u` each string has one spelling, so a document that has such objects goes without. What is lost
are the control characters that have no shorter escape. In sandboxed processes.
"""

from collections.abc import Iterator
from typing import Any

from coordinator.constraint.refused_keyword import refuse

SHORT_ESCAPES = r"nrbtf\""
"""What may follow a backslash where each string has one spelling."""

UNSPELLED = "".join(char for char in map(chr, [*range(0x20), 0x7F]) if char not in "\n\r\b\t\f")
"""Characters that cannot be spelled then."""


def takes_keys_apart(schema: dict[str, Any]) -> bool:
    """True when it depends on the key of a member what its value must be."""
    names_keys = bool(schema.get("properties") or schema.get("required"))
    has_patterns = bool(schema.get("patternProperties"))
    has_others = schema.get("additionalProperties") is not False
    return names_keys + has_patterns + has_others > 1


def check_num_keys(schema: dict[str, Any], path: str) -> None:
    """Refuses numbers of keys that the engine would reach by writing one of them again.

    Raises:
        ValueError: More than one key is wanted beside those that are required by name.
    """
    num_wanted = schema.get("minProperties")
    required = schema.get("required")
    if not isinstance(num_wanted, int) or isinstance(num_wanted, bool):
        return  # the engine says what it must be
    names = (
        {name for name in required if isinstance(name, str)}
        if isinstance(required, list)
        else set()
    )
    if num_wanted > len(names) + 1:
        refuse(
            "minProperties",
            num_wanted,
            f"{path}/minProperties",
            f"at most one more than the {len(names)} that are required by name may be asked for",
        )


def check_characters(value: object, where: str) -> None:
    """Refuses a literal that could not be spelled with short escapes.

    Args:
        value: Value of a keyword; keys in it are spelled as they are.
        where: The path to the keyword.

    Raises:
        ValueError: It has such a character.
    """
    for text in _strings(value):
        for char in text:
            if char in UNSPELLED:
                refuse(
                    where.rpartition("/")[2],
                    f"with U+{ord(char):04X}",
                    where,
                    "the schema has objects with named keys and others, in which no \\u is allowed",
                )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
