"""What `/v1/messages` answers: a message, the events of a stream, and errors."""

from typing import Any, Literal

from pydantic import Field

from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.written_objects import WrittenObject

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextAnswer(ResponseModel):
    """A text."""

    type: Literal["text"]
    text: str


class ThinkingAnswer(ResponseModel):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="A digest of the thinking.")


class ToolUseAnswer(ResponseModel):
    """A call that the model asks for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: WrittenObject = Field(description="Arguments; empty where they are streamed.")


AnswerBlock = TextAnswer | ThinkingAnswer | ToolUseAnswer


class OutputTokensDetails(ResponseModel):
    """What the tokens of the output are."""

    thinking_tokens: int


class MessageUsage(ResponseModel):
    """Tokens of one request."""

    input_tokens: int = Field(description="Of the prompt, without those that the cache held.")
    cache_creation_input_tokens: int = Field(description="Always 0: whatever fits is cached.")
    cache_read_input_tokens: int = Field(description="Of the prompt, those that the cache held.")
    output_tokens: int
    output_tokens_details: OutputTokensDetails | None = Field(
        default=None, description="Where some are thinking."
    )


class AssistantAnswer(ResponseModel):
    """The answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None = Field(description="Null at the beginning of a stream.")
    stop_sequence: str | None = Field(description="The stop sequence that ended the text.")
    usage: MessageUsage


class TokenCount(ResponseModel):
    """The length of a prompt."""

    input_tokens: int


class MessageStart(ResponseModel):
    """The first event of a stream."""

    type: Literal["message_start"]
    message: AssistantAnswer


class BlockStart(ResponseModel):
    """A block begins; it is empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnswerBlock


class TextDelta(ResponseModel):
    """More of a text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(ResponseModel):
    """More of what the model thinks."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(ResponseModel):
    """The signature of a block of thinking; its last delta."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(ResponseModel):
    """More of the arguments of a call: a piece of a JSON object."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(ResponseModel):
    """More of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(ResponseModel):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class MessageEnd(ResponseModel):
    """Why a message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(ResponseModel):
    """The message is whole."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(ResponseModel):
    """The last event of a stream."""

    type: Literal["message_stop"]


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop

AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
]


class AnthropicError(ResponseModel):
    """What went wrong."""

    type: AnthropicErrorType
    message: str = Field(description="One line for people, with the field and the numbers.")
    details: dict[str, Any] | None = Field(
        default=None, description="By which a client knows what to do without."
    )


class AnthropicErrorResponse(ResponseModel):
    """An error, in the shape that Anthropic's clients read."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class AnthropicModel(ResponseModel):
    """A model, whether it is served at present or not, as Anthropic's clients read it."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str = Field(description="When the coordinator was started, as RFC 3339 has it.")
    lifecycle: Literal["active"]
    max_input_tokens: int | None = Field(
        description="Most tokens of one request, as for `max_tokens`; null until it was served."
    )
    max_tokens: int | None


class AnthropicModelList(ResponseModel):
    """All models, on one page."""

    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None
