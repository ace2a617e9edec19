"""Tools of a request of `/v1/responses`: which the model is shown, and which it may call.

A function of a namespace is shown under both names, with a dot between them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.doors.http.responses_items import shown_name
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.responses_tools import (
    AllowedToolsChoice,
    FunctionChoice,
    FunctionTool,
    NamespaceTool,
)
from coordinator.doors.http.tool_parts import tool_of
from coordinator.doors.tool_use import tool_use


class FunctionOf(NamedTuple):
    """A function that a call names."""

    name: str
    namespace: str | None


def shown_tools(request: ResponsesRequest) -> tuple[Tool, ...]:
    """Tools that the model is shown: none where none may be called.

    Raises:
        InvalidArgumentError: A name has other characters than names have.
    """
    if request.tool_choice == "none":
        return ()
    return tuple(
        tool_of(
            shown_name(*_function(tool, namespace)),
            _description(tool, namespace),
            tool.parameters,
            strict=tool.strict,
        )
        for tool, namespace in _functions(request)
    )


def used_by(request: ResponsesRequest, tools: Sequence[Tool]) -> ToolUse | None:
    """Which tools may or must be called.

    Args:
        request: Validated.
        tools: Tools that the model is shown.

    Raises:
        InvalidArgumentError: One is to be called, and there is none, or not that one.
    """
    allows_several = request.parallel_tool_calls is not False
    match request.tool_choice:
        case FunctionChoice() as choice:
            return tool_use(tools, only=shown_name(choice.name, choice.namespace))
        case AllowedToolsChoice() as choice:
            return tool_use(
                tools,
                mode=ToolMode(choice.mode),
                allowed=frozenset(shown_name(one.name, one.namespace) for one in choice.tools),
                allows_several=allows_several,
            )
        case "required":
            return tool_use(tools, mode=ToolMode.REQUIRED, allows_several=allows_several)
        case _:
            return tool_use(tools, allows_several=allows_several)


def functions_by_name(request: ResponsesRequest) -> Mapping[str, FunctionOf]:
    """What a call of each name that the model is shown is a call of."""
    named = [_function(*one) for one in _functions(request)]
    return {shown_name(*function): function for function in named}


def tool_places(request: ResponsesRequest) -> list[str]:
    """Where each tool that the model is shown stands in the request."""
    places: list[str] = []
    for index, tool in enumerate(request.tools or ()):
        if isinstance(tool, FunctionTool):
            places.append(f"tools[{index}]")
        elif isinstance(tool, NamespaceTool):
            places += [f"tools[{index}].tools[{within}]" for within in range(len(tool.tools))]
    return places


def used_choice(request: ResponsesRequest) -> str | dict[str, object]:
    """The choice between tools, as it is repeated."""
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump(exclude_unset=True)


def used_tools(request: ResponsesRequest) -> list[dict[str, object]]:
    """The tools that are used, as they are repeated."""
    used: list[dict[str, object]] = []
    for tool in request.tools or ():
        if isinstance(tool, FunctionTool):
            used.append(_used(tool))
        elif isinstance(tool, NamespaceTool):
            used.append(
                {
                    "type": "namespace",
                    "name": tool.name,
                    "description": tool.description or "",
                    "tools": [_used(one) for one in tool.tools],
                }
            )
    return used


def _functions(request: ResponsesRequest) -> Iterator[tuple[FunctionTool, NamespaceTool | None]]:
    """Every function, with its namespace."""
    for tool in request.tools or ():
        if isinstance(tool, FunctionTool):
            yield tool, None
        elif isinstance(tool, NamespaceTool):
            for one in tool.tools:
                yield one, tool


def _description(tool: FunctionTool, namespace: NamespaceTool | None) -> str | None:
    """What the model is told of a function."""
    told = (None if namespace is None else namespace.description, tool.description)
    return "\n\n".join(filter(None, told)) or None


def _function(tool: FunctionTool, namespace: NamespaceTool | None) -> FunctionOf:
    return FunctionOf(tool.name, None if namespace is None else namespace.name)


def _used(tool: FunctionTool) -> dict[str, object]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
