"""The events of a streamed response, in the order in which their kinds first come."""

from typing import Literal

from pydantic import Field

from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.chat import TokenLogprob
from coordinator.doors.http.schema.responses_answer import (
    OutputItem,
    OutputText,
    ReasoningText,
    ResponseObject,
)


class Event(ResponseModel):
    """Base of all events."""

    type: str
    sequence_number: int


class ResponseEvent(Event):
    """What has become of the response."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class ItemEvent(Event):
    """An item begins, or is there."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _OfItem(Event):
    item_id: str
    output_index: int


class PartEvent(_OfItem):
    """A part of an item begins, or is there."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int = 0
    part: OutputText | ReasoningText


class TextDelta(_OfItem):
    """More of a text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    content_index: int = 0
    delta: str
    logprobs: list[TokenLogprob] = Field(default=[])


class TextDone(_OfItem):
    """A whole text."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    content_index: int = 0
    text: str
    logprobs: list[TokenLogprob] = Field(default=[])


class ReasoningDelta(_OfItem):
    """More of what the model thinks."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    content_index: int = 0
    delta: str


class ReasoningDone(_OfItem):
    """All that the model thought."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    content_index: int = 0
    text: str


class ArgumentsDelta(_OfItem):
    """More of the arguments of a call."""

    type: Literal["response.function_call_arguments.delta"] = (
        "response.function_call_arguments.delta"
    )
    delta: str


class ArgumentsDone(_OfItem):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str
