"""What the routes under `/api` take, as Ollama writes it."""

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue, Tag, model_validator

from coordinator.core.request_spec import (
    MAX_CHAT_MESSAGES,
    MAX_LOGPROBS,
    MAX_STOP_STRINGS,
    MAX_UINT32,
)
from coordinator.core.tools import MAX_TOOL_CALLS, MAX_TOOLS
from coordinator.doors.embedding import MAX_PROMPTS
from coordinator.doors.http.schema.base import (
    TEXT,
    Advisory,
    Integer,
    MessagePart,
    ModelRequest,
    OnlyOne,
    RequestModel,
    Unsupported,
    by_json_type,
    idle_of_role,
)
from coordinator.doors.http.schema.completion import PromptText
from coordinator.doors.http.schema.sampling import Seed, StopString
from coordinator.doors.http.schema.tools import FunctionDefinition

_OBJECT, _BOOLEAN, _TEXTS = Tag("<object>"), Tag("<boolean>"), Tag("<texts>")

_ROLE_FIELDS = {
    "thinking": "assistant",
    "tool_calls": "assistant",
    "tool_name": "tool",
    "tool_call_id": "tool",
}
"""Fields that say something in one role alone."""

Format = Annotated[
    Annotated[Literal["", "json"], TEXT] | Annotated[dict[str, JsonValue], _OBJECT],
    by_json_type({str: TEXT, dict: _OBJECT}, 'must be "json" or a JSON schema'),
]

EmbedInput = Annotated[
    Annotated[str, TEXT] | Annotated[list[PromptText], Field(max_length=MAX_PROMPTS), _TEXTS],
    by_json_type({str: TEXT, list: _TEXTS}, "must be a text or a list of texts"),
]

Think = Annotated[
    Annotated[bool, _BOOLEAN] | Annotated[Literal["low", "medium", "high"], TEXT],
    by_json_type({bool: _BOOLEAN, str: TEXT}, "must be true, false, low, medium or high"),
]


class Options(RequestModel):
    """How tokens are chosen and when they end."""

    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy. Default 0.8.")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the probability that is kept; 0: the likeliest token. Default 0.9.",
    )
    top_k: Integer | None = Field(
        None,
        ge=-1,
        le=MAX_UINT32,
        description="Most likely tokens that are kept; 0 or -1: all. Default 40.",
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Least share of the highest probability that is kept."
    )
    seed: Seed | None = Field(
        None,
        description="The same seed and request give the same text, but for the rounding of the "
        "model's arithmetic. -1: drawn at random.",
    )
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description="The text ends before the first of these."
    )
    num_predict: Integer | None = Field(
        None, ge=-2, description="Most tokens to generate. 0 and less: as many as fit."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Subtracted from the logits of tokens that the output has."
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Subtracted from a token's logit once for each time that the output has it.",
    )
    repeat_penalty: float | None = Field(
        None,
        ge=0.001,
        le=100,
        description="Makes tokens of prompt and output less likely, however far back they stand. "
        "Default 1: not.",
    )
    repeat_last_n: Advisory = None
    typical_p: OnlyOne = None
    tfs_z: OnlyOne = None
    mirostat: Unsupported = None
    mirostat_tau: Advisory = None
    mirostat_eta: Advisory = None
    penalize_newline: Advisory = None
    num_ctx: Advisory = Field(None, description="A conversation may always be as long as fits.")
    num_keep: Advisory = None
    num_batch: Advisory = None
    num_gpu: Advisory = None
    num_thread: Advisory = None
    main_gpu: Advisory = None
    numa: Advisory = None
    low_vram: Advisory = None
    f16_kv: Advisory = None
    logits_all: Advisory = None
    vocab_only: Advisory = None
    use_mmap: Advisory = None
    use_mlock: Advisory = None
    embedding_only: Advisory = None


class OllamaModelRequest(ModelRequest):
    """What is asked of a model, which Ollama's clients may call by its name and `:latest`."""


class OllamaRequest(OllamaModelRequest):
    """What conversations and texts have in common."""

    format: Format | None = Field(
        None, description="A form that the text has: `json`, any object, or a JSON schema."
    )
    options: Options | None = Field(None, description="How tokens are chosen and when they end.")
    stream: bool | None = Field(
        None, description="Send lines of JSON as tokens come. Default true."
    )
    think: Think | None = Field(
        None,
        description="Given to the chat template as `enable_thinking` and `thinking`; a word also as"
        " `reasoning_effort`. Null: what the template does by itself.",
    )
    keep_alive: Advisory = None
    logprobs: bool | None = Field(
        None, description="Return the log-probability of every token. Default false."
    )
    top_logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="With `logprobs`: most likely tokens whose log-probabilities are returned too.",
    )
    truncate: Unsupported = Field(None, description="A prompt is never shortened.")
    shift: Unsupported = Field(None, description="A prompt is never shortened.")

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> "OllamaRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is set, which needs logprobs to be true")
        return self


class OllamaFunction(MessagePart):
    """A function that was called."""

    name: str = Field(description="Name of the tool.")
    arguments: dict[str, JsonValue] | None = Field(
        None, description="Its arguments; null or absent: none."
    )
    index: Integer | None = Field(None, description="Calls are in order anyway.")


class OllamaTool(RequestModel):
    """A tool."""

    type: Literal["function"] | None = Field(None, description="There is one type alone.")
    function: FunctionDefinition = Field(description="What may be called.")
    items: Advisory = None


class OllamaToolCall(MessagePart):
    """A call that the assistant asked for."""

    id: str | None = Field(None, description="Needed only where results name it.")
    type: Literal["function"] | None = Field(None, description="There is one type alone.")
    function: OllamaFunction = Field(description="What is called.")


class OllamaMessage(MessagePart):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: str | None = Field(None, description="Null, absent or empty: nothing was said.")
    thinking: str | None = Field(
        None, description="What the assistant thought; most templates show it of the last turn."
    )
    images: Unsupported = None
    tool_calls: Annotated[list[OllamaToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = Field(
        None, description="Calls that the assistant asked for."
    )
    tool_name: str | None = Field(None, description="Of a result: the tool that was called.")
    tool_call_id: str | None = Field(
        None, description="Of a result: the call. Null: the first of that tool without a result."
    )

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`: those that say something in another role."""
        return idle_of_role(self, _ROLE_FIELDS)


class OllamaChatRequest(OllamaRequest):
    """A conversation to continue."""

    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_CHAT_MESSAGES)] | None = Field(
        None, description="Oldest first. None: only whether the model is there is asked."
    )
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may call."
    )


class OllamaGenerateRequest(OllamaRequest):
    """A text to answer, or with `raw` to continue."""

    prompt: str | None = Field(
        None, description="None or empty: only whether the model is there is asked."
    )
    system: str | None = Field(None, description="System message.")
    raw: bool | None = Field(None, description="Continue the prompt as it stands. Default false.")
    suffix: Unsupported = None
    images: Unsupported = None
    template: Unsupported = None
    context: Unsupported = None
    width: Unsupported = None
    height: Unsupported = None
    steps: Unsupported = None

    @model_validator(mode="after")
    def _check_raw(self) -> "OllamaGenerateRequest":
        if self.raw and self.system:
            raise ValueError("system is set beside raw, which takes the prompt as it stands")
        if self.raw and self.think:
            raise ValueError("think is set beside raw, which takes the prompt as it stands")
        return self


class OllamaEmbedFields(OllamaModelRequest):
    """What requests for vectors have in common."""

    keep_alive: Advisory = None
    options: Advisory = Field(None, description="No token is chosen.")


class OllamaEmbedRequest(OllamaEmbedFields):
    """One text to turn into a vector, or several."""

    input: EmbedInput | None = Field(
        None,
        description="A text, or a list of texts. None or empty: only whether the model is there is"
        " asked.",
    )
    dimensions: Integer | None = Field(
        None,
        ge=0,
        description="Keep so many of the first elements, before the length is made 1. Default, and"
        " 0: all.",
    )
    truncate: Advisory = Field(None, description="A text that is too long is refused.")

    @property
    def texts(self) -> Sequence[str]:
        """The texts, in order."""
        if not self.input:
            return ()
        return [self.input] if isinstance(self.input, str) else self.input


class OllamaEmbeddingsRequest(OllamaEmbedFields):
    """One text to turn into a vector, in the older way."""

    prompt: str | None = Field(
        None,
        description="The text. None or empty: only whether the model is there is asked.",
    )


class OllamaShowRequest(OllamaModelRequest):
    """A model that is asked about."""

    name: str | None = Field(None, description="The older name of `model`.")
    verbose: Advisory = None
    system: Advisory = None
    template: Advisory = None
    options: Advisory = None

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("name") and not value.get("model"):
            return {**value, "model": value["name"]}
        return value
