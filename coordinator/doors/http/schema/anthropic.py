"""What `/v1/messages` and `/v1/messages/count_tokens` take, as Anthropic writes it."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from coordinator.core.request_spec import MAX_CHAT_MESSAGES, MAX_STOP_STRINGS, MAX_UINT32
from coordinator.core.tools import MAX_TOOLS
from coordinator.doors.http.schema.anthropic_blocks import InputMessage, Texts
from coordinator.doors.http.schema.base import (
    Advisory,
    Integer,
    ModelRequest,
    RequestModel,
    Unsupported,
)


class AnthropicTool(RequestModel):
    """A function that the model may call."""

    type: Literal["custom"] | None = Field(
        None, description="Tools that another server runs are refused."
    )
    name: str = Field(description="1 to 128 ASCII letters, digits and any of `_.:/-`.")
    description: str | None = Field(None, description="Shown to the model.")
    input_schema: dict[str, JsonValue] = Field(
        description="JSON schema of the arguments. Properties that it does not list are not "
        "written, unless it says what else is allowed."
    )
    strict: bool | None = Field(
        None,
        description="Refuse a schema that cannot be kept to. Arguments of calls that are forced "
        "always conform, others as far as their schema can be kept to.",
    )
    defer_loading: Unsupported = None
    allowed_callers: Advisory = None
    cache_control: Advisory = None
    eager_input_streaming: Advisory = None
    input_examples: Advisory = None


class AnthropicToolChoice(RequestModel):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"] = Field(
        description="The model chooses; it calls a tool; it calls that tool; it calls none."
    )
    name: str | None = Field(None, description="With the type `tool`: its name.")
    disable_parallel_tool_use: bool | None = Field(
        None, description="One answer calls one tool at most, once."
    )

    @model_validator(mode="after")
    def _check_name(self) -> "AnthropicToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("has a name exactly where its type is tool")
        return self


class ThinkingConfig(RequestModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled"] = Field(
        description="Given to the chat template as `enable_thinking` and `thinking`; absent: false."
        " Some models think in any case."
    )
    budget_tokens: Integer | None = Field(
        None,
        ge=1,
        le=MAX_UINT32,
        description="Thinking ends after so many tokens, with models that end it by one.",
    )
    display: Literal["summarized", "omitted"] | None = Field(
        None,
        description="`omitted`: blocks of thinking are empty. Otherwise all of it is told.",
    )


class JsonOutput(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"] = Field(description="There is one form alone.")
    schema_: dict[str, JsonValue] = Field(alias="schema", description="The text conforms to it.")


class OutputConfig(RequestModel):
    """What the output is like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="Given to the chat template as `reasoning_effort`; what is above `high` is "
        "`high`.",
    )
    format: JsonOutput | None = Field(None, description="A form that the text has.")


class MessagesPrompt(ModelRequest):
    """What is counted: all that becomes a part of the prompt."""

    messages: list[InputMessage] = Field(
        min_length=1, max_length=MAX_CHAT_MESSAGES, description="Oldest first."
    )
    system: Texts | None = Field(None, description="What stands before all messages.")
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may call."
    )
    tool_choice: AnthropicToolChoice | None = Field(
        None,
        description="A call that is forced (`any`, `tool`) conforms to its schema. Default `auto`.",
    )
    thinking: ThinkingConfig | None = Field(
        None, description="Whether the model thinks before it answers."
    )
    output_config: OutputConfig | None = Field(None, description="What the output is like.")
    output_format: JsonOutput | None = Field(
        None, description="The older name of `output_config.format`."
    )
    cache_control: Advisory = None
    context_management: Advisory = None
    mcp_servers: Unsupported = None
    compaction: Unsupported = None
    fallbacks: Advisory = Field(None, description="No request is declined.")
    fallback_credit_token: Advisory = None
    billing_policy: Advisory = None
    thread: Unsupported = Field(None, description="Conversations are sent whole.")
    speed: Advisory = None

    @model_validator(mode="after")
    def _check_format(self) -> "MessagesPrompt":
        if self.output_format is not None and self.output_config and self.output_config.format:
            raise ValueError("output_format is set beside output_config.format: give one of them")
        return self

    @property
    def form(self) -> JsonOutput | None:
        """The form of the text."""
        if self.output_format is not None:
            return self.output_format
        return self.output_config.format if self.output_config is not None else None


class CountTokensRequest(MessagesPrompt):
    """A conversation whose tokens are counted."""


StopSequence = Annotated[str, Field(min_length=1)]


class MessagesRequest(MessagesPrompt):
    """A conversation to continue."""

    max_tokens: Integer | None = Field(
        None, ge=0, description="Most tokens to generate. Null: as many as fit, as is any more."
    )
    stop_sequences: Annotated[list[StopSequence], Field(max_length=MAX_STOP_STRINGS)] | None = (
        Field(None, description="The text ends before the first of these.")
    )
    stream: bool | None = Field(None, description="Send events as they come. Default false.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the probability that is kept; 0: the likeliest token. Default 1.",
    )
    top_k: Integer | None = Field(
        None, ge=-1, le=MAX_UINT32, description="Most likely tokens that are kept; 0 or -1: all."
    )
    metadata: Advisory = None
    service_tier: Advisory = None
    inference_geo: Advisory = None
    diagnostics: Advisory = None
    container: Unsupported = None
