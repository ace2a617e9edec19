"""`/v1/completions`."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from coordinator.core.request_spec import MAX_LOGPROBS
from coordinator.doors.http.schema.base import TEXT, Advisory, Integer, ResponseModel, Unsupported
from coordinator.doors.http.schema.sampling import (
    MAX_CHOICES,
    FinishReasonText,
    MaxTokensOrNone,
    PromptLogprobsList,
    SamplingFields,
    TokenId,
    Usage,
)

DEFAULT_MAX_TOKENS = 16
"""Default of `max_tokens`, which is OpenAI's."""

PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1)]


IDS, TEXTS, LISTS = Tag("<ids>"), Tag("<texts>"), Tag("<lists>")
"""Forms of a prompt beside a text."""


def _kind_of_prompt(value: object) -> str | None:
    """The tag of the form that a prompt was meant to have."""
    if isinstance(value, str):
        return TEXT.tag
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    tags = {str: TEXTS, list: LISTS}
    return next((tag.tag for kind, tag in tags.items() if isinstance(first, kind)), IDS.tag)


BY_FORM = Discriminator(
    _kind_of_prompt,
    custom_error_type="wrong_type",
    custom_error_message="must be a text or token ids, or a list of texts or of token ids",
)
"""Chooses what a prompt, or several, was meant to be."""

Prompt = Annotated[
    Annotated[PromptText, TEXT]
    | Annotated[PromptIds, IDS]
    | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_CHOICES), TEXTS]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_CHOICES), LISTS],
    BY_FORM,
]


class CompletionRequest(SamplingFields):
    """One prompt to continue, or several."""

    prompt: Prompt = Field(
        description="A text or token ids, or a list of texts or of lists of token ids."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer put its special tokens around a text; a begin token that "
        "the text begins with is not repeated. Default true. Token ids stay as they are.",
    )
    max_tokens: MaxTokensOrNone | None = Field(
        None,
        description=f"Most tokens to make. Default {DEFAULT_MAX_TOKENS}. -1: as many as fit, as is "
        "any more. 0: only with `echo` or `prompt_logprobs`.",
    )
    logprobs: Integer | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Return the log-probability of every token and of as many of the most likely "
        "ones.",
    )
    echo: bool | None = Field(
        None,
        description="Return the prompt before its completion; with `logprobs`, those of its tokens "
        "too, of which the first has null, and that of an end token behind the completion. For "
        "these the whole prompt is computed, whatever the prefix cache holds.",
    )
    best_of: Integer | None = Field(
        None, ge=1, le=MAX_CHOICES, description="Only equal to `n`: nothing is thrown away."
    )
    metadata: Advisory = None
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(
                f"best_of is {self.best_of}, which is supported only when it equals n, which is "
                f"{self.n or 1}"
            )
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise ValueError("max_tokens is 0, must be at least 1 where no prompt is returned")
        return self


class CompletionLogprobs(ResponseModel):
    """Log-probabilities of a text; all lists are as long as there are tokens.

    Tokens of one text have one entry in `top_logprobs`, that of the likeliest.
    """

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="Null for the first token of a prompt.")
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One completion, or what is new in it."""

    index: int = Field(description="Completions of the first prompt come first.")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReasonText | None = Field(description="Null while more follows.")
    token_ids: list[int] | None = Field(
        default=None, description="Of the completion, with `return_token_ids`."
    )
    prompt_logprobs: PromptLogprobsList | None = Field(
        default=None, description="With the field of the same name."
    )


class Completion(ResponseModel):
    """All completions of a request, or one event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
