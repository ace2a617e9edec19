"""What `/v1/responses` answers: a response, and the items of its output."""

from typing import Any, Literal

from pydantic import Field

from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.chat import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(ResponseModel):
    """A text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default=[], max_length=0)
    logprobs: list[TokenLogprob] = Field(default=[], description="Where they are included.")


class ReasoningText(ResponseModel):
    """A text of thinking."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputMessage(ResponseModel):
    """What the user reads."""

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputReasoning(ResponseModel):
    """What the model thought."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[Any] = Field(default=[], max_length=0, description="There is none.")
    content: list[ReasoningText]


class OutputFunctionCall(ResponseModel):
    """A call that the model asks for; one that was cut is incomplete."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str = Field(description="A JSON object, or the beginning of one.")


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class InputTokensDetails(ResponseModel):
    """What became of the tokens of the input."""

    cached_tokens: int = Field(description="Those that the prefix cache held.")
    cache_write_tokens: int = Field(default=0, description="Nothing is charged for.")


class OutputTokensDetails(ResponseModel):
    """What the tokens of the output are."""

    reasoning_tokens: int = Field(description="Those of thinking.")


class ResponsesUsage(ResponseModel):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int = Field(description="Thinking included, without end tokens.")
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(ResponseModel):
    """Why a response that had begun failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(ResponseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class UsedReasoning(ResponseModel):
    """How the model was asked to think."""

    effort: str | None
    summary: None = None


class UsedText(ResponseModel):
    """How the text was asked to be written."""

    format: dict[str, Any]


class ResponseObject(ResponseModel):
    """An answer to a conversation, and what was asked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int = Field(description="In seconds of the Unix clock.")
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem] = Field(default=[])
    usage: ResponsesUsage | None = None
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    text: UsedText
    reasoning: UsedReasoning
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["default"] = "default"
    store: bool
    metadata: dict[str, str]


class DeletedResponse(ResponseModel):
    """A response that is no longer kept."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputItemList(ResponseModel):
    """Items of the conversation that a response continues."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str = Field(description="Empty if there is none.")
    last_id: str
    has_more: bool
