"""Tools and the choice between them, as a caller gives them, and their messages. No I/O."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import Message

from stagecoach.client.function_tool import FunctionTool, ToolFunction
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2

ToolLike = Mapping[str, object] | ToolFunction
"""A tool: a Python function, or a mapping in OpenAI's form, `{"type": "function", "function":
{"name": ..., "description": ..., "parameters": ..., "strict": ...}}`."""

ToolChoiceLike = str | Mapping[str, object] | Sequence[str]
"""`auto`, `none`, `required`, the name of the tool that is called, or names of those that alone may
be called; or a mapping in OpenAI's form."""

_MODES = MappingProxyType(
    {
        "auto": generation_pb2.TOOL_MODE_AUTO,
        "none": generation_pb2.TOOL_MODE_NONE,
        "required": generation_pb2.TOOL_MODE_REQUIRED,
    }
)
MessageT = TypeVar("MessageT", bound=Message)
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})


@dataclass(frozen=True, slots=True)
class GivenTools:
    """The tools of a request."""

    messages: tuple[generation_pb2.Tool, ...]
    functions: Mapping[str, FunctionTool]
    """Tools that are Python functions, by name."""

    @classmethod
    def of(cls, tools: Iterable[ToolLike]) -> "GivenTools":
        """Reads tools.

        Raises:
            InvalidArgumentError: One is neither a function with annotations that JSON stands for,
                nor a mapping in OpenAI's form; the error names it.
        """
        if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
            raise InvalidArgumentError(
                f"tools is a {type(tools).__name__}, must be a list of functions and mappings",
                field="tools",
            )
        messages: list[generation_pb2.Tool] = []
        functions: dict[str, FunctionTool] = {}
        for index, tool in enumerate(tools):
            field = f"tools[{index}]"
            if isinstance(tool, Mapping):
                messages.append(_mapping_message(tool, field))
            elif callable(tool):
                function = FunctionTool.of(tool, field)
                functions[function.name] = function
                messages.append(_function_message(function, field))
            else:
                raise InvalidArgumentError(
                    f"{field} is a {type(tool).__name__}, must be a function or a mapping",
                    field=field,
                )
        return cls(tuple(messages), MappingProxyType(functions))


def tool_choice_message(choice: ToolChoiceLike) -> generation_pb2.ToolChoice:
    """Writes the choice between tools.

    Raises:
        InvalidArgumentError: It has none of the forms.
    """
    match choice:
        case "auto" | "none" | "required":
            return generation_pb2.ToolChoice(mode=_MODES[choice])
        case str():
            return _message(generation_pb2.ToolChoice, "tool_choice", name=choice)
        case {"type": "function", "function": {"name": str() as name}}:
            return _message(generation_pb2.ToolChoice, "tool_choice", name=name)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]},
        } if all(isinstance(_named(one), str) for one in tools):
            allowed = _message(
                generation_pb2.AllowedTools,
                "tool_choice",
                mode=_MODES[mode],
                names=[_named(one) for one in tools],
            )
            return generation_pb2.ToolChoice(allowed=allowed)
        case Sequence() if all(isinstance(one, str) for one in choice):
            allowed = _message(generation_pb2.AllowedTools, "tool_choice", names=list(choice))
            return generation_pb2.ToolChoice(allowed=allowed)
    raise InvalidArgumentError(
        f"tool_choice is {choice!r:.100}, must be auto, none, required, the name of a tool, a list"
        " of names, or a mapping in OpenAI's form",
        field="tool_choice",
    )


def _named(tool: object) -> object:
    """The name in one of OpenAI's allowed tools; None where there is none."""
    match tool:
        case {"type": "function", "function": {"name": name}}:
            return name
    return None


def _mapping_message(tool: Mapping[str, object], field: str) -> generation_pb2.Tool:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise InvalidArgumentError(
            f"{field} has no function: a mapping is in OpenAI's form, with type and function, and"
            " tools of other types are not known",
            field=field,
        )
    unknown = sorted(set(map(str, function)) - _FUNCTION_KEYS)
    if unknown:
        raise InvalidArgumentError(
            f"{field}.function has {', '.join(unknown):.100}, and may have"
            f" {', '.join(sorted(_FUNCTION_KEYS))}",
            field=f"{field}.function",
        )
    given = {name: value for name, value in function.items() if value is not None}
    parameters = given.pop("parameters", None)
    if parameters is not None:
        given["parameters"] = json_text(parameters, f"{field}.function.parameters")
    return _message(generation_pb2.Tool, f"{field}.function", **given)


def _function_message(function: FunctionTool, field: str) -> generation_pb2.Tool:
    return _message(
        generation_pb2.Tool,
        field,
        name=function.name,
        description=function.description or None,
        parameters=json_text(function.form.schema, field),
        strict=True,
    )


def json_text(value: object, field: str) -> str:
    """A mapping as JSON text.

    Args:
        value: What a caller gave.
        field: Argument that holds it, for errors.

    Raises:
        InvalidArgumentError: It is no mapping, or cannot be written as JSON.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{field} is {value!r:.100}, must be a mapping", field=field)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{field} cannot be written as JSON: {error}", field=field
        ) from error


def _message(kind: type[MessageT], field: str, **values: object) -> MessageT:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{field} has a value of the wrong type: {error}", field=field
        ) from error
