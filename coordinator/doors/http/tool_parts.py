"""Tools, the choice between them, and their calls: from a client's fields to the engine's nouns."""

import json
from collections.abc import Mapping, Sequence

from coordinator.core.tools import Tool, ToolMode, ToolUse
from stagecoach.contract.errors import InvalidArgumentError


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


def tool_use(
    tools: Sequence[Tool],
    *,
    mode: ToolMode = ToolMode.AUTO,
    only: str | None = None,
    allowed: frozenset[str] | None = None,
    allows_several: bool = True,
) -> ToolUse | None:
    """Which tools may or must be called; None: there is none.

    Args:
        tools: Tools that the model is shown.
        mode: Whether one must be called.
        only: The one tool that must be called, and once.
        allowed: Names of those that may be called. None: all.
        allows_several: Whether several may be called.

    Raises:
        InvalidArgumentError: One is to be called, and there is none, or not that one.
    """
    if only is not None:
        mode, allowed, allows_several = ToolMode.REQUIRED, frozenset({only}), False
    if tools:
        return ToolUse(
            tools=tuple(tools), mode=mode, callable_names=allowed, allows_several=allows_several
        )
    if mode is ToolMode.AUTO and allowed is None:
        return None
    raise InvalidArgumentError(
        "prompt.chat.tool_choice asks for a call, but there are no tools",
        field="prompt.chat.tool_choice",
    )


def arguments_object(text: str) -> str:
    """The arguments of a call; those that are no object, as of a call that was cut, as text."""
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return (text or "{}") if is_object else json.dumps({"arguments": text}, ensure_ascii=False)
