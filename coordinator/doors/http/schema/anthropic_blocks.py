"""What the messages of `/v1/messages` consist of."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, Tag

from coordinator.core.request_spec import MAX_CHAT_MESSAGES
from coordinator.doors.http.schema.base import (
    ITEMS,
    TEXT,
    Advisory,
    MessagePart,
    by_json_type,
    by_type,
)

_TYPE = Field(description="Images, documents and what tools of a server bring are refused.")


class TextBlock(MessagePart):
    """A text."""

    type: Literal["text"] = _TYPE
    text: str = Field(
        description="An empty line stands between the texts of one message, but not in those of the"
        " assistant."
    )
    cache_control: Advisory = None
    citations: Advisory = None


class ThinkingBlock(MessagePart):
    """What the assistant thought."""

    type: Literal["thinking"] = _TYPE
    thinking: str = Field(description="Most templates show it of the last turn.")
    signature: str | None = Field(None, description="Taken as it comes.")


class RedactedThinkingBlock(MessagePart):
    """What the assistant thought, in a form that only another server reads."""

    type: Literal["redacted_thinking"] = _TYPE
    data: Advisory = None


class ToolUseBlock(MessagePart):
    """A call that the assistant asked for."""

    type: Literal["tool_use"] = _TYPE
    id: str = Field(description="By which its result names it.")
    name: str = Field(description="Name of the tool.")
    input: dict[str, JsonValue] = Field(description="Its arguments.")
    cache_control: Advisory = None
    caller: Advisory = None


_TEXTS_ONLY = "must be a string or a list of blocks"

Texts = Annotated[
    Annotated[str, TEXT] | Annotated[list[TextBlock], Field(max_length=MAX_CHAT_MESSAGES), ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, _TEXTS_ONLY),
]
"""A text, or blocks of text."""


class ToolResultBlock(MessagePart):
    """What a call brought."""

    type: Literal["tool_result"] = _TYPE
    tool_use_id: str = Field(description="Id of the call.")
    content: Texts | None = Field(None, description="Null, absent or empty: nothing.")
    is_error: Advisory = Field(None, description="The content says what failed.")
    cache_control: Advisory = None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    by_type(
        ("text", "thinking", "redacted_thinking", "tool_use", "tool_result"),
        ": images, documents and what tools of a server bring are refused",
    ),
]

Blocks = Annotated[
    Annotated[str, TEXT] | Annotated[list[Block], Field(max_length=MAX_CHAT_MESSAGES), ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, _TEXTS_ONLY),
]


class InputMessage(MessagePart):
    """One turn of a conversation; turns of one role after each other are one turn."""

    role: Literal["user", "assistant", "system"] = Field(
        description="The output goes on with a last message of the assistant. What the system says "
        "after the first turn is told in a turn of the user, as many templates know no other place."
    )
    content: Blocks = Field(description="A text, or blocks.")
