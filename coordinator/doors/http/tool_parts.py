"""Tools and their calls: from a client's fields to the engine's nouns."""

import json
from collections.abc import Mapping

from coordinator.core.tools import Tool


def tool_of(
    name: str,
    description: str | None,
    parameters: Mapping[str, object] | None,
    *,
    strict: bool | None,
) -> Tool:
    """A function as the engine takes it.

    Raises:
        InvalidArgumentError: Its name has another form.
    """
    return Tool(
        name=name,
        description=description,
        parameters=None if parameters is None else json.dumps(parameters, ensure_ascii=False),
        is_strict=strict or False,
    )


def arguments_object(text: str) -> str:
    """The arguments of a call; those that are no object, as of a call that was cut, as text."""
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return (text or "{}") if is_object else json.dumps({"arguments": text}, ensure_ascii=False)
