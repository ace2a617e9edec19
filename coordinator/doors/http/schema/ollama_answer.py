"""What the routes under `/api` answer."""

from typing import Any, Literal

from pydantic import Field

from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.written_objects import WrittenObject

DoneReason = Literal["stop", "length", "load"]


class CalledFunctionAnswer(ResponseModel):
    """A function that the model asks for."""

    index: int
    name: str
    arguments: WrittenObject


class ToolCallAnswer(ResponseModel):
    """A call that the model asks for."""

    id: str
    function: CalledFunctionAnswer


class MessageAnswerPart(ResponseModel):
    """What is new in an answer, or all of it."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


class OllamaTokenLogprob(ResponseModel):
    """A token, and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaTokenLogprob):
    """A token of the output."""

    top_logprobs: list[OllamaTokenLogprob] | None = Field(
        default=None, description="Most likely tokens at its place; absent unless asked for."
    )


class OllamaAnswer(ResponseModel):
    """What is new in an answer, or all of it."""

    model: str
    created_at: str
    done: bool
    done_reason: DoneReason | None = None
    total_duration: int | None = Field(default=None, description="In nanoseconds, as all of these.")
    load_duration: int | None = None
    prompt_eval_count: int | None = Field(default=None, description="Tokens of the prompt.")
    prompt_eval_duration: int | None = Field(default=None, description="Until the first token.")
    eval_count: int | None = Field(default=None, description="Tokens of the output.")
    eval_duration: int | None = Field(default=None, description="From the first token on.")
    logprobs: list[OllamaLogprob] | None = Field(
        default=None, description="Of every new token, thinking and calls included."
    )


class ChatAnswerPart(OllamaAnswer):
    """Answer of `/api/chat`; a stream has one a line."""

    message: MessageAnswerPart


class GenerateAnswerPart(OllamaAnswer):
    """Answer of `/api/generate`; a stream has one a line."""

    response: str
    thinking: str | None = None


class OllamaEmbeddings(ResponseModel):
    """Answer of `/api/embed`."""

    model: str
    embeddings: list[list[float]] = Field(description="In the order of the texts.")
    total_duration: int = Field(description="In nanoseconds.")
    load_duration: int
    prompt_eval_count: int = Field(description="Tokens of all texts.")


class OllamaEmbedding(ResponseModel):
    """Answer of `/api/embeddings`."""

    embedding: list[float]


class ModelDetails(ResponseModel):
    """What is known of the kind of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str = Field(description="In which form stages keep its matrices.")


class ListedModel(ResponseModel):
    """A model, which may be loading."""

    name: str
    model: str
    modified_at: str
    size: int = Field(description="Bytes of its weights on the stages; 0 while it loads.")
    digest: str = Field(description="Of its first name.")
    details: ModelDetails


class ListedModels(ResponseModel):
    """All models, under each of their names."""

    models: list[ListedModel]


class RunningModel(ListedModel):
    """A model that is served."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(ResponseModel):
    """All models that are served."""

    models: list[RunningModel]


class ShownModel(ResponseModel):
    """What is told of a model."""

    license: str
    modelfile: str
    parameters: str
    template: str = Field(description="Its chat template, in Jinja.")
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[Literal["completion", "tools", "thinking"]]
    modified_at: str


class OllamaVersion(ResponseModel):
    """Which Ollama has this API."""

    version: str


class OllamaErrorResponse(ResponseModel):
    """An error, in the shape that Ollama's clients read."""

    error: str = Field(description="One line for people, with the field and the numbers.")
