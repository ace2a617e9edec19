"""Which tools of a request may or must be called, as any door's client says it."""

from collections.abc import Sequence

from coordinator.core.tools import Tool, ToolMode, ToolUse
from stagecoach.contract.errors import InvalidArgumentError


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
