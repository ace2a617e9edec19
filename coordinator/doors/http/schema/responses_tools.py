"""Tools and the choice between them, as `/v1/responses` writes them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag

from coordinator.core.tools import MAX_TOOLS
from coordinator.doors.http.schema.base import (
    TEXT,
    Advisory,
    MessagePart,
    RequestModel,
    Unsupported,
    Unused,
    by_json_type,
    by_type,
    refuse_types_but,
    type_in,
)

_OBJECT = Tag("<object>")
_KIND = (
    "Functions, and namespaces of them. A `web_search` beside these changes nothing; other tools "
    "that run on a server are refused."
)
_DESCRIPTION = "Shown to the model; that of a namespace before those of its functions."
_NAME = (
    "1 to 128 ASCII letters, digits and any of `_.:/-`, that of a namespace included, which stands "
    "before the names of its functions, with a dot."
)


class FunctionTool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"] = Field(description=_KIND)
    name: str = Field(description=_NAME)
    description: str | None = Field(None, description=_DESCRIPTION)
    parameters: dict[str, JsonValue] | None = Field(
        None, description="JSON schema of an object. Null or absent: it takes no arguments."
    )
    strict: bool | None = Field(
        None,
        description="Refuse a schema that cannot be kept to. Arguments of calls that are forced "
        "always conform, others as far as their schema can be kept to.",
    )
    output_schema: Advisory = None
    allowed_callers: Advisory = None
    defer_loading: Unsupported = None


class NamespaceTool(RequestModel):
    """Functions whose names are together with that of the namespace."""

    type: Literal["namespace"] = Field(description=_KIND)
    name: str = Field(description=_NAME)
    description: str | None = Field(None, description=_DESCRIPTION)
    tools: list[FunctionTool] = Field(
        min_length=1, max_length=MAX_TOOLS, description="Functions that the model may call."
    )


class WebSearchTool(MessagePart):
    """A search that is not made: the model is not shown it."""

    # A large body is validated in two places, and the second needs the type too.
    type: Annotated[
        Literal["web_search", "web_search_2025_08_26"],
        Unused(asks_for_nothing=False, is_up_to_model=True),
    ] = Field(description=_KIND)


_TOOL_TYPES = ("function", "namespace", "web_search", "web_search_2025_08_26")


def _tool_kind(value: object) -> str | None:
    kind = type_in(value)
    if kind not in _TOOL_TYPES:
        return None
    return f"<{kind}>" if kind in ("function", "namespace") else "<web_search>"


ResponsesTool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[NamespaceTool, Tag("<namespace>")]
    | Annotated[WebSearchTool, Tag("<web_search>")],
    Discriminator(
        _tool_kind,
        custom_error_type="wrong_type",
        custom_error_message="must be an object whose type is function or namespace",
    ),
    refuse_types_but(
        _TOOL_TYPES,
        lambda kind: (
            f"is a tool of the type {kind}, which is not supported: only functions and namespaces"
            " are"
        ),
    ),
]
"""A tool; others that run on a server are refused by name."""


def _check_tools(tools: list[ResponsesTool]) -> list[ResponsesTool]:
    """Refuses a search that is all that is asked for."""
    if tools and all(isinstance(tool, WebSearchTool) for tool in tools):
        raise ValueError(
            f"has only {tools[0].type!r}, which is not supported: only functions and namespaces are"
        )
    return tools


ResponsesTools = Annotated[
    list[ResponsesTool], Field(max_length=MAX_TOOLS), AfterValidator(_check_tools)
]


class FunctionChoice(RequestModel):
    """A function by its name."""

    type: Literal["function"] = Field(description=_KIND)
    name: str = Field(description="Name of one of the functions.")
    namespace: str | None = Field(None, description="Of the function, if it has one.")


_FunctionOnly = refuse_types_but(
    ("function",),
    lambda kind: f"is a tool of the type {kind}, which is not supported: only functions are",
)


class AllowedToolsChoice(RequestModel):
    """Some of the tools may or must be called; all are shown."""

    type: Literal["allowed_tools"] = Field(description="Some of the tools.")
    mode: Literal["auto", "required"] = Field(description="Whether one must be called.")
    tools: list[Annotated[FunctionChoice, _FunctionOnly]] = Field(
        min_length=1, max_length=MAX_TOOLS, description="Those that may be called."
    )


_CHOICE_TYPES = ("function", "allowed_tools")

_Choice = Annotated[
    Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
    by_type(_CHOICE_TYPES),
    refuse_types_but(
        _CHOICE_TYPES,
        lambda kind: f"names a tool of the type {kind}, which is not supported: only functions are",
    ),
]

ResponsesToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required", ""], TEXT] | Annotated[_Choice, _OBJECT],
    by_json_type(
        {str: TEXT, dict: _OBJECT}, "must be none, auto, required, or an object that names tools"
    ),
]
"""Which tools may or must be called; an empty string is what the empty box of a form sends."""
