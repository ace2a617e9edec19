"""What a JSON file says, in a form that nobody who is handed it can change.

Libraries complete the objects that they are given in place. A configuration that two of them read
must say to the second what its file says.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType

_MAX_SHOWN_CHARS = 80


def frozen(value: object) -> object:
    """Copies parsed JSON: objects become read-only mappings and lists become tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({name: frozen(each) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return value


def thawed(value: object) -> object:
    """Copies what `frozen` gave back into objects and lists of the caller's own."""
    if isinstance(value, Mapping):
        return {name: thawed(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return list(map(thawed, value))
    return value


def shown(value: object) -> str:
    """Writes a value as its file does, on one line of bounded length."""
    text = json.dumps(thawed(value), ensure_ascii=False)
    return text if len(text) < _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
