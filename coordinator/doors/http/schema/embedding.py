"""`/v1/embeddings`."""

from typing import Annotated, Literal

from pydantic import Field

from coordinator.core.request_spec import MAX_CACHE_SALT_CHARS
from coordinator.doors.embedding import MAX_PROMPTS
from coordinator.doors.http.schema.base import (
    TEXT,
    Advisory,
    Integer,
    ModelRequest,
    ResponseModel,
    Unsupported,
)
from coordinator.doors.http.schema.completion import (
    BY_FORM,
    IDS,
    LISTS,
    TEXTS,
    PromptIds,
    PromptText,
)
from coordinator.doors.http.schema.other_servers import ServingFields

Input = Annotated[
    Annotated[PromptText, TEXT]
    | Annotated[PromptIds, IDS]
    | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS), TEXTS]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS), LISTS],
    BY_FORM,
]


class EmbeddingRequest(ServingFields, ModelRequest):
    """One text to turn into a vector, or several."""

    input: Input = Field(
        description="A text or token ids, or a list of texts or of lists of token ids. Token ids "
        "are those of the served model."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description="Numbers, or the base64 of their float32, little-endian. Default float.",
    )
    dimensions: Integer | None = Field(
        None,
        ge=1,
        description="Keep so many of the first elements, before the length is made 1. Default: "
        "all, which is as many as a hidden state has.",
    )
    pooling: Literal["last", "mean"] | None = Field(
        None,
        description="The hidden state of the last token, or the mean of all, for which the whole "
        "text is computed, whatever the prefix cache holds. Default last.",
    )
    normalize: bool | None = Field(
        None, description="Give each embedding the length 1. Default true."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer put its special tokens around a text; a begin token that "
        "the text begins with is not repeated. Default true. Token ids stay as they are.",
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CACHE_SALT_CHARS,
        description="Only requests of the same salt share the KV of a prefix.",
    )
    user: Advisory = None
    truncate: Unsupported = None
    truncation: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    input_type: Unsupported = None
    task: Unsupported = None
    late_chunking: Unsupported = None
    return_multivector: Unsupported = None


class Embedding(ResponseModel):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int = Field(description="Place of the text in `input`.")
    embedding: list[float] | str = Field(description="Text where `encoding_format` is base64.")


class EmbeddingUsage(ResponseModel):
    """Tokens of one request."""

    prompt_tokens: int = Field(description="Of all texts.")
    total_tokens: int


class EmbeddingList(ResponseModel):
    """The embeddings of a request, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
