"""What `/v1/responses` takes."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from coordinator.core.request_spec import MAX_LOGPROBS
from coordinator.core.tools import MAX_TOOLS
from coordinator.doors.http.schema.base import (
    ITEMS,
    NONE_IF_EMPTY,
    TEXT,
    Advisory,
    Integer,
    ModelRequest,
    RequestModel,
    Unsupported,
    by_json_type,
)
from coordinator.doors.http.schema.response_format import JsonObjectFormat, TextFormat
from coordinator.doors.http.schema.responses_items import MAX_ITEMS, InputItem
from coordinator.doors.http.schema.responses_tools import ResponsesToolChoice, ResponsesTools
from coordinator.doors.http.schema.sampling import MaxTokens
from coordinator.doors.thinking_arguments import MAX_EFFORT_CHARS

MAX_LABELS = 16
MAX_LABEL_CHARS, MAX_LABEL_TEXT_CHARS = 64, 512
MAX_ID_CHARS = 128

LOGPROBS = "message.output_text.logprobs"
"""What can be included beside what is always there."""

ResponsesInput = Annotated[
    Annotated[str, TEXT] | Annotated[list[InputItem], Field(max_length=MAX_ITEMS), ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, "must be a string or a list of items"),
]

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class JsonSchemaTextFormat(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"] = Field(
        description="Any text, any JSON object, or JSON that conforms to a schema."
    )
    name: str = Field(
        min_length=1, max_length=64, description="A label; the text does not depend on it."
    )
    schema_: dict[str, JsonValue] = Field(alias="schema", description="The text conforms to it.")
    strict: bool | None = Field(
        None, description="The schema is always kept to, so that both values are honoured."
    )
    description: Advisory = None


_TYPES = ("text", "json_object", "json_schema")


def _form_of(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in _TYPES else None


TextForm = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaTextFormat, Tag("<json_schema>")],
    Discriminator(
        _form_of,
        custom_error_type="wrong_type",
        custom_error_message=f"must be an object whose type is one of {', '.join(_TYPES)}",
    ),
]


class TextConfig(RequestModel):
    """How the text is written."""

    format: TextForm | None = Field(None, description="A form that the whole text has.")
    verbosity: Advisory = None


class ReasoningConfig(RequestModel):
    """How the model thinks."""

    effort: Annotated[str | None, NONE_IF_EMPTY] = Field(
        None,
        max_length=MAX_EFFORT_CHARS,
        description="Given to the chat template as `reasoning_effort`, and as `enable_thinking`: "
        "false for `none`, else true.",
    )
    summary: Advisory = Field(
        None, description="Thinking is shown as it is, in `content`; there is no summary."
    )
    generate_summary: Advisory = None
    context: Advisory = None
    mode: Advisory = None


class ResponsesStreamOptions(RequestModel):
    """How a stream is written."""

    include_obfuscation: Advisory = None


_Id = Annotated[str, Field(max_length=MAX_ID_CHARS)]
_Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
_LabelText = Annotated[str, Field(max_length=MAX_LABEL_TEXT_CHARS)]


class ResponsesRequest(ModelRequest):
    """A conversation to continue."""

    input: ResponsesInput | None = Field(
        None, description="What the user says, or items, oldest first."
    )
    instructions: str | None = Field(
        None, description="What the system says, before all else. Not kept for later responses."
    )
    previous_response_id: Annotated[_Id | None, NONE_IF_EMPTY] = Field(
        None,
        description="The conversation begins with that of this response, which must be kept.",
    )
    store: bool | None = Field(
        None, description="Keep the response for a while, in bounded memory. Default true."
    )
    stream: bool | None = Field(None, description="Send events as they come. Default false.")
    stream_options: ResponsesStreamOptions | None = Field(None, description="Changes nothing.")

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the probability that is kept; 0: the likeliest token. Default 1.",
    )
    max_output_tokens: MaxTokens | None = Field(
        None,
        description="Most tokens to generate, thinking included. Null or -1: as many as fit, as is"
        " any more.",
    )
    text: TextConfig | None = Field(None, description="How the text is written.")
    reasoning: ReasoningConfig | None = Field(None, description="How the model thinks.")

    tools: ResponsesTools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ResponsesToolChoice | None = Field(
        None,
        description="Whether tools are called: `none`, `auto` (the default with tools), `required`,"
        " or which. A call that is forced conforms to its schema.",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether one answer may call several tools. Default true."
    )

    include: list[Includable] | None = Field(
        None,
        max_length=MAX_TOOLS,
        description=f"`{LOGPROBS}` is honoured; the others are of things that are not here.",
    )
    top_logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description=f"Most likely tokens whose log-probabilities are included with `{LOGPROBS}`.",
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="A conversation that is too long is refused: nothing is dropped."
    )
    metadata: dict[_Label, _LabelText] | None = Field(
        None, max_length=MAX_LABELS, description="Returned with the response."
    )
    background: Unsupported = None
    background_options: Unsupported = None

    user: Advisory = None
    safety_identifier: Advisory = None
    prompt_cache_key: Advisory = None
    prompt_cache_retention: Advisory = None
    prompt_cache_options: Advisory = None
    service_tier: Advisory = None
    max_tool_calls: Advisory = Field(None, description="Of tools that run on a server.")
    client_metadata: Advisory = None
    conversation: Unsupported = None
    prompt: Unsupported = None
    moderation: Unsupported = None
    context_management: Unsupported = None
    access_programs: Unsupported = None
    image: Unsupported = None

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`."""
        idle = []
        wanted = self.include or []
        if any(one != LOGPROBS for one in wanted):
            idle.append("include")
        if LOGPROBS not in wanted and self.top_logprobs:
            idle.append("top_logprobs")
        if self.truncation == "auto":
            idle.append("truncation")
        if not self.stream:
            idle.append("stream_options")
        return idle

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens are shown with each; None: no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None
