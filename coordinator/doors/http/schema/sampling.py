"""The fields that both kinds of completion have: how tokens are chosen and when they end."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from coordinator.core.request_spec import (
    MAX_CACHE_SALT_CHARS,
    MAX_LOGPROBS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_UINT32,
)
from coordinator.core.sampling_params import MAX_LOGIT_BIASES
from coordinator.doors.http.schema.base import (
    ITEMS,
    NONE_IF_EMPTY,
    TEXT,
    Advisory,
    Integer,
    ModelRequest,
    RequestModel,
    ResponseModel,
    by_json_type,
)
from coordinator.doors.http.schema.other_servers import OtherServersFields
from coordinator.doors.http.schema.response_format import ResponseFormat, StructuredOutputs

MAX_CHOICES = 128
"""Most completions that one request may ask for, over all its prompts."""

TokenId = Annotated[int, Field(ge=0, le=MAX_UINT32)]
StopString = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopString, TEXT]
    | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), ITEMS],
    by_json_type({str: TEXT, list: ITEMS}, "must be a string or a list of strings"),
]
MIN_SEED, MAX_SEED = -(2**63), 2**64 - 1
_MAX_DIGITS = 24
"""Most digits of a number out of range that an error shows."""
NO_LIMIT = -1
"""Value of `max_tokens` that other servers take for no limit."""


def _check_max_tokens(value: int) -> int:
    if value < 1 and value != NO_LIMIT:
        raise ValueError(f"is {value}, must be at least 1, or {NO_LIMIT} for as many as fit")
    return value


MaxTokens = Annotated[
    Integer,
    AfterValidator(_check_max_tokens),
    WithJsonSchema({"anyOf": [{"const": NO_LIMIT}, {"type": "integer", "minimum": 1}]}),
]


def _check_seed(value: int) -> int:
    if not MIN_SEED <= value <= MAX_SEED:
        raise ValueError(f"is {str(value)[:_MAX_DIGITS]}, must be from {MIN_SEED} to {MAX_SEED}")
    return value


Seed = Annotated[
    Integer,
    AfterValidator(_check_seed),
    WithJsonSchema({"type": "integer", "minimum": MIN_SEED, "maximum": MAX_SEED}),
]
"""Pydantic's own words round a bound that a double does not hold."""
TokenIdText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _check_tokens_or_none(value: int) -> int:
    if value < 0 and value != NO_LIMIT:
        raise ValueError(f"is {value}, must be at least 0, or {NO_LIMIT} for as many as fit")
    return value


MaxTokensOrNone = Annotated[
    Integer,
    AfterValidator(_check_tokens_or_none),
    WithJsonSchema({"anyOf": [{"const": NO_LIMIT}, {"type": "integer", "minimum": 0}]}),
]
"""As `MaxTokens`, for where the prompt alone may be returned."""


class StreamOptions(RequestModel):
    """How a stream is written."""

    include_usage: bool | None = Field(
        None, description="Send one more chunk, without choices, with the usage of the request."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With `include_usage`: every chunk has the usage so far."
    )
    include_obfuscation: Advisory = None


class SamplingFields(OtherServersFields, ModelRequest):
    """Fields of both kinds of completion."""

    n: Integer | None = Field(
        None, ge=1, le=MAX_CHOICES, description="Completions of each prompt. Default 1."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the probability that is kept; 0: the likeliest token. Default 1.",
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Subtracted from a token's logit once for each time that the output has it. "
        "Default 0.",
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Subtracted from the logits of tokens that the output has. Default 0.",
    )
    logit_bias: dict[TokenIdText, Bias] | None = Field(
        None, max_length=MAX_LOGIT_BIASES, description="Added to logits, by token id."
    )
    seed: Seed | None = Field(
        None,
        description="The same seed and request give the same text, whatever else runs, but for "
        "the rounding of the model's arithmetic. Null or -1: drawn at random. Each of several "
        "completions has its own, derived from it.",
    )
    stop: Annotated[Stop | None, NONE_IF_EMPTY] = Field(
        None, description="The text ends before the first of these."
    )
    stream: bool | None = Field(None, description="Send tokens as they come. Default false.")
    stream_options: StreamOptions | None = Field(
        None, description="Changes nothing without `stream`."
    )
    user: Advisory = None
    store: Advisory = None
    safety_identifier: Advisory = None
    prompt_cache_key: Advisory = None
    prompt_cache_options: Advisory = None
    prompt_cache_retention: Advisory = None
    service_tier: Advisory = None
    reasoning_effort: Advisory = None
    verbosity: Advisory = None
    parallel_tool_calls: Advisory = None
    response_format: ResponseFormat | None = Field(
        None, description="A form that the whole text has. Default text, which is any."
    )

    # What other servers have beside OpenAI's fields.
    top_k: Integer | None = Field(
        None, ge=-1, le=MAX_UINT32, description="Most likely tokens that are kept; 0 or -1: all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Least share of the highest probability that is kept."
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.001,
        le=100,
        description="Makes tokens of prompt and output less likely. Default 1: not.",
    )
    min_tokens: Integer | None = Field(
        None,
        ge=0,
        le=MAX_UINT32,
        description="Tokens before which neither an end token nor a stop string ends the text.",
    )
    ignore_eos: bool | None = Field(
        None, description="Do not end at the model's end-of-sequence tokens."
    )
    stop_token_ids: list[TokenId] | None = Field(
        None,
        max_length=MAX_STOP_TOKEN_IDS,
        description="The text ends at any of these tokens.",
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CACHE_SALT_CHARS,
        description="Only requests of the same salt share the KV of a prefix.",
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="A form that the whole text has, in further languages."
    )
    prompt_logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return the log-probability of every token of the prompt but the first, with "
        "its rank, and those of as many of the most likely ones. The whole prompt is computed for "
        "them, whatever the prefix cache holds. Not with `stream`.",
    )
    return_token_ids: bool | None = Field(
        None,
        description="Return token ids beside the text. Default: only for a model without a "
        "tokenizer, which has no text.",
    )

    def idle_fields(self) -> Collection[str]:
        """See `RequestModel.idle_fields`."""
        return () if self.stream else ("stream_options",)

    @model_validator(mode="after")
    def _check_combinations(self) -> "SamplingFields":
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("structured_outputs is set beside response_format: give one of them")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs is set beside stream: they come with a whole answer")
        return self


class PromptTokenLogprob(ResponseModel):
    """A token at one place of a prompt."""

    logprob: float
    rank: int = Field(description="Its place among all tokens by falling probability, from 1 on.")
    decoded_token: str = Field(description="Its text.")


PromptLogprobsList = list[dict[str, PromptTokenLogprob] | None]
"""The entries of each token of a prompt, by token id; null for the first."""


class PromptTokensDetails(ResponseModel):
    """What became of the tokens of the prompt."""

    cached_tokens: int = Field(description="Those that the prefix cache held.")


class CompletionTokensDetails(ResponseModel):
    """What the tokens of the completions are."""

    reasoning_tokens: int = Field(description="Those of thinking.")


class Usage(ResponseModel):
    """Tokens of one request."""

    prompt_tokens: int = Field(description="Of every prompt, once each.")
    completion_tokens: int = Field(description="Of all completions, without end tokens.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = Field(
        default=None, description="Not while more follows."
    )
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, description="Where some are thinking; not while more follows."
    )


FinishReasonText = Literal["stop", "length", "tool_calls"]
