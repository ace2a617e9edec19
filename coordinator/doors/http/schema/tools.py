"""Tools, calls of them, and the choice between them, as OpenAI writes them."""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, Tag

from coordinator.core.tools import MAX_TOOLS
from coordinator.doors.http.schema.base import (
    TEXT,
    Advisory,
    MessagePart,
    RequestModel,
    ResponseModel,
    by_json_type,
    by_type,
)

_OBJECT = Tag("<object>")
_FUNCTION_ONLY = "Only functions; tools of other types are refused."


class FunctionDefinition(RequestModel):
    """A function that the model may call."""

    name: str = Field(description="1 to 128 ASCII letters, digits and any of `_.:/-`.")
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, JsonValue] | None = Field(
        None,
        description="JSON schema of an object. Null or absent: it takes no arguments. Properties "
        "that it does not list are not written, unless it says what else is allowed.",
    )
    strict: bool | None = Field(
        None,
        description="Refuse a schema that cannot be kept to. Arguments of calls that are forced "
        "always conform, others as far as their schema can be kept to.",
    )


class ToolDefinition(RequestModel):
    """A tool."""

    type: Literal["function"] = Field(description=_FUNCTION_ONLY)
    function: FunctionDefinition = Field(description="What may be called.")
    cache_control: Advisory = None


Tools = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)]


class FunctionName(RequestModel):
    """A function by its name."""

    name: str = Field(description="Name of one of the tools.")


class NamedTool(RequestModel):
    """A tool by its name."""

    type: Literal["function"] = Field(description=_FUNCTION_ONLY)
    function: FunctionName = Field(description="Which.")


class AllowedTools(RequestModel):
    """Some of the tools."""

    mode: Literal["auto", "required"] = Field(description="Whether one must be called.")
    tools: list[NamedTool] = Field(
        min_length=1, max_length=MAX_TOOLS, description="Those that may be called."
    )


class AllowedToolsChoice(RequestModel):
    """Some of the tools may or must be called; all are shown."""

    type: Literal["allowed_tools"] = Field(description="Some of the tools.")
    allowed_tools: AllowedTools = Field(description="Which, and whether one must be called.")


_Choice = Annotated[
    Annotated[NamedTool, Tag("<function>")] | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
    by_type(("function", "allowed_tools")),
]

ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required", ""], TEXT] | Annotated[_Choice, _OBJECT],
    by_json_type(
        {str: TEXT, dict: _OBJECT}, "must be none, auto, required, or an object that names tools"
    ),
]
"""Which tools may or must be called; an empty string is what the empty box of a form sends."""


def arguments_object(text: str) -> str:
    """The arguments of a call; those that are no object, as of a call that was cut, as text."""
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return (text or "{}") if is_object else json.dumps({"arguments": text}, ensure_ascii=False)


class CalledFunction(MessagePart):
    """A function that was called."""

    name: str = Field(description="Name of the function.")
    # Read where the body is validated, which is a process of its own for a long one.
    arguments: Annotated[str, AfterValidator(arguments_object)] = Field(
        "{}", description="Arguments as a JSON object."
    )


class MessageToolCall(MessagePart):
    """A call in a message of the assistant."""

    id: str = Field("", description="What the message that answers it names.")
    type: Literal["function"] = Field("function", description=_FUNCTION_ONLY)
    function: CalledFunction = Field(description="What was called.")


class FunctionCall(ResponseModel):
    """A call of a function, or what is new of one."""

    name: str | None = None
    arguments: str = Field(description="A JSON object, or a piece of it.")


class ToolCallMessage(ResponseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ToolCallDelta(ResponseModel):
    """What is new of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall
