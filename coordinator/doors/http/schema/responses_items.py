"""Items of `/v1/responses` that a client puts into a conversation."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from coordinator.core.request_spec import MAX_CHAT_MESSAGES
from coordinator.doors.http.schema.base import (
    ITEMS,
    TEXT,
    Advisory,
    MessagePart,
    by_json_type,
    refuse_types_but,
)

MAX_ITEMS = MAX_CHAT_MESSAGES
"""Items of one conversation, those of earlier responses included."""

_Status = Literal["in_progress", "completed", "incomplete"]
_STATUS = "Listed again; the model is not told it."
_ID = "Of an item of a response that is kept, if that is all there is; else it changes nothing."
_CONTENT = "What is said, or was thought."
_KIND = "Items of tools that run on a server are refused."
_PART = "Images, sounds and files are refused."
_CALL_ID = "By which a call and its output know each other."


class TextPart(MessagePart):
    """A part of what a message, or the output of a function, says."""

    type: Literal["input_text", "output_text", "text"] = Field(description=_PART)
    text: str = Field(description="The texts of all parts are joined.")
    annotations: list[JsonValue] | None = Field(None, description="Changes nothing.")
    logprobs: list[JsonValue] | None = Field(None, description="Changes nothing.")

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`; what is repeated from an answer is empty."""
        return [name for name in ("annotations", "logprobs") if getattr(self, name)]


class RefusalPart(MessagePart):
    """What the assistant said in the place of an answer."""

    type: Literal["refusal"] = Field(description=_PART)
    refusal: str = Field(description="What was said; joined like a text.")


def _part_of(value: object) -> str:
    is_refusal = isinstance(value, dict) and value.get("type") == "refusal"
    return "<refusal>" if is_refusal else "<part>"


_Part = Annotated[
    Annotated[TextPart, Tag("<part>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(_part_of),
]
_Parts = Annotated[list[_Part], Field(max_length=MAX_ITEMS)]
_Content = Annotated[
    Annotated[str, TEXT] | Annotated[_Parts, ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, "must be a string or a list of parts"),
]


class InputMessage(MessagePart):
    """A message."""

    type: Literal["message"] = Field("message", description=_KIND)
    role: Literal["user", "assistant", "system", "developer"] = Field(
        description="`developer` is the same as `system`."
    )
    content: _Content = Field(description=_CONTENT)
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)
    phase: Advisory = None


class InputFunctionCall(MessagePart):
    """A call that the assistant asked for."""

    type: Literal["function_call"] = Field(description=_KIND)
    call_id: str = Field(description=_CALL_ID)
    name: str = Field(description="Name of the function.")
    namespace: str | None = Field(None, description="Of the function, if it has one.")
    arguments: str = Field(description="A JSON object.")
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)


class InputFunctionOutput(MessagePart):
    """What a function returned."""

    type: Literal["function_call_output"] = Field(description=_KIND)
    call_id: str = Field(description=_CALL_ID)
    output: _Content = Field(description="What the function returned.")
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)


class SummaryPart(MessagePart):
    """A part of what the assistant thought, in short."""

    type: Literal["summary_text"] = Field(description=_PART)
    text: str = Field(description="The texts of all parts are joined.")


class ReasoningPart(MessagePart):
    """A part of what the assistant thought."""

    type: Literal["reasoning_text"] = Field(description=_PART)
    text: str = Field(description="The texts of all parts are joined.")


class InputReasoning(MessagePart):
    """What the assistant thought; most templates show it of the last turn."""

    type: Literal["reasoning"] = Field(description=_KIND)
    summary: list[SummaryPart] | None = Field(
        None, max_length=MAX_ITEMS, description="Counts where there is no `content`."
    )
    content: list[ReasoningPart] | None = Field(None, max_length=MAX_ITEMS, description=_CONTENT)
    encrypted_content: str | None = Field(None, description="Changes nothing.")
    id: str | None = Field(None, description=_ID)
    status: _Status | None = Field(None, description=_STATUS)

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`."""
        idle = ["encrypted_content"] if self.encrypted_content else []
        return [*idle, "summary"] if self.summary and self.content else idle


class ItemReference(MessagePart):
    """An item of a response that is kept."""

    type: Literal["item_reference"] | None = Field(None, description=_KIND)
    id: str = Field(description=_ID)


_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind_of(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if kind is None:
        return "<item_reference>" if "id" in value and "role" not in value else "<message>"
    return f"<{kind}>" if kind in _TYPES else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputFunctionCall, Tag("<function_call>")]
    | Annotated[InputFunctionOutput, Tag("<function_call_output>")]
    | Annotated[InputReasoning, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _kind_of,
        custom_error_type="wrong_type",
        custom_error_message=f"must be an object whose type is one of {', '.join(_TYPES)}",
    ),
    refuse_types_but(
        _TYPES,
        lambda kind: (
            f"has the type {kind}, which is not supported: it must be one of {', '.join(_TYPES)}"
        ),
    ),
]
"""What a list of input consists of."""
