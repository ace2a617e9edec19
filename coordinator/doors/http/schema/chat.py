"""`/v1/chat/completions`."""

import json
from collections.abc import Collection
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from coordinator.core.request_spec import MAX_CHAT_MESSAGES, MAX_LOGPROBS
from coordinator.core.tools import MAX_TOOL_CALLS
from coordinator.doors.http.schema.base import (
    ITEMS,
    NEUTRAL,
    TEXT,
    UP_TO_MODEL,
    Advisory,
    Integer,
    MessagePart,
    OnlyOne,
    ResponseModel,
    Unsupported,
    by_json_type,
    idle_of_role,
)
from coordinator.doors.http.schema.conversation import ConversationFields
from coordinator.doors.http.schema.sampling import (
    FinishReasonText,
    MaxTokens,
    PromptLogprobsList,
    SamplingFields,
    Usage,
)
from coordinator.doors.http.schema.tools import MessageToolCall, ToolCallDelta, ToolCallMessage

MAX_METADATA_CHARS = 16 * 1024
"""Written as JSON; OpenAI's 16 strings of 512 fit. The event loop reads them and writes them."""

MAX_PATH_CHARS = 64
"""Most characters of a path into what a client sent that an error shows."""


class ContentPart(MessagePart):
    """A part of a message."""

    type: Literal["text"] = Field(description="Images, sounds and files are refused.")
    text: str = Field(description="The texts of all parts are joined.")


_ROLE_FIELDS = {
    "tool_calls": "assistant",
    "reasoning_content": "assistant",
    "reasoning": "assistant",
    "tool_call_id": "tool",
}
"""Fields that say something in one role alone."""

NoFunctionCall = Annotated[
    Literal["none", "auto", ""] | None,
    NEUTRAL,
    Field(description="Not supported: use `tool_choice`."),
]

Content = Annotated[
    Annotated[str, TEXT] | Annotated[list[ContentPart], Field(max_length=MAX_CHAT_MESSAGES), ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, "must be a string or a list of parts"),
]


class Message(MessagePart):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="`developer` is what newer clients call `system`, and is the same."
    )
    content: Content | None = Field(None, description="Null, absent or empty: nothing was said.")
    name: Annotated[str | None, UP_TO_MODEL] = Field(
        None, description="For models whose template tells speakers of one role apart; few do."
    )
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: list[MessageToolCall] | None = Field(
        None, max_length=MAX_TOOL_CALLS, description="Calls that the assistant asked for."
    )
    tool_call_id: str | None = Field(
        None, description="Of a message of the role `tool`: the call that it answers."
    )
    reasoning_content: str | None = Field(
        None, description="What the assistant thought; most templates show it of the last turn."
    )
    reasoning: str | None = Field(None, description="The same by another name.")

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`: those that say something in another role."""
        idle = idle_of_role(self, _ROLE_FIELDS)
        if self.reasoning_content and self.reasoning not in (None, "", self.reasoning_content):
            idle.append("reasoning")
        return idle


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Refuses what is long, and what could not be returned."""
    try:
        num_chars = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise ValueError(_no_number(metadata)) from error
    if num_chars > MAX_METADATA_CHARS:
        raise ValueError(
            f"has {num_chars} characters as JSON, at most {MAX_METADATA_CHARS} are taken"
        )
    return metadata


def _no_number(metadata: dict[str, Any]) -> str:
    """Says where the number is that JSON cannot write: a double does not hold 1e999."""
    waiting: list[tuple[str, object]] = [("", metadata)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += ((f"{path}.{name}", one) for name, one in value.items())
        elif isinstance(value, list):
            waiting += ((f"{path}[{index}]", one) for index, one in enumerate(value))
        elif isinstance(value, float) and not isfinite(value):
            break
    return f"has a number at {path[:MAX_PATH_CHARS]} that is read as {value}"


class ChatCompletionRequest(ConversationFields, SamplingFields):
    """A conversation to continue."""

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_CHAT_MESSAGES, description="Oldest first."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer put its special tokens around the prompt; the template "
        "writes its own, and a begin token is not repeated. Default false.",
    )
    max_completion_tokens: MaxTokens | None = Field(
        None, description="Most tokens to generate. Null or -1: as many as fit, as is any more."
    )
    max_tokens: MaxTokens | None = Field(
        None, description="The older name of `max_completion_tokens`."
    )
    logprobs: bool | None = Field(
        None, description="Return the log-probability of every token. Default false."
    )
    top_logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return those of as many of the most likely tokens too. Only with `logprobs`.",
    )

    metadata: Annotated[dict[str, Any], AfterValidator(_check_metadata)] | None = Field(
        None,
        description="Kept nowhere; returned with a response that is not streamed. At most "
        f"{MAX_METADATA_CHARS} characters as JSON.",
    )
    modalities: Annotated[list[Literal["text"]] | None, NEUTRAL] = Field(
        None, description="Only text is made."
    )
    audio: Unsupported = None
    moderation: Unsupported = None
    prediction: Advisory = None
    web_search_options: Unsupported = None
    parallel_tool_calls: bool | None = Field(
        None, description="Whether one answer may call several tools. Default true."
    )
    functions: Unsupported = None
    function_call: NoFunctionCall = None
    best_of: OnlyOne = None
    echo: Unsupported = None

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`."""
        return ("metadata",) if self.stream else super().idle_fields()

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                f"{self.max_completion_tokens}: give one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is set, which needs logprobs to be true")
        return self


class TopLogprob(ResponseModel):
    """One of the most likely tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the text."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    """Log-probabilities of a text, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(ResponseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null beside calls of tools, if nothing was said.")
    refusal: None = None
    reasoning_content: str | None = Field(default=None, description="What the model thought.")
    reasoning: str | None = Field(default=None, description="The same by another name.")
    tool_calls: list[ToolCallMessage] | None = None


class ChatChoice(ResponseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReasonText
    token_ids: list[int] | None = Field(default=None, description="With `return_token_ids`.")


class ChatCompletion(ResponseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobsList | None = Field(
        default=None, description="With the field of the same name."
    )
    metadata: dict[str, Any] | None = None


class ChatDelta(ResponseModel):
    """What is new in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(ResponseModel):
    """What is new in one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReasonText | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(ResponseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
