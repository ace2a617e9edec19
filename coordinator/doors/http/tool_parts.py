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
