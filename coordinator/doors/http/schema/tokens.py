"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in the shape that vLLM gave them."""

from pydantic import ConfigDict, Field, model_validator

from coordinator.core.request_spec import MAX_CHAT_MESSAGES
from coordinator.doors.http.schema.base import ModelRequest, ResponseModel
from coordinator.doors.http.schema.chat import Message
from coordinator.doors.http.schema.conversation import ConversationFields
from coordinator.doors.http.schema.sampling import TokenId


class TokenizeRequest(ConversationFields, ModelRequest):
    """A text or a conversation; exactly one is set."""

    prompt: str | None = Field(None, min_length=1, description="A text.")
    messages: list[Message] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CHAT_MESSAGES,
        description="Rendered by the model's chat template.",
    )

    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer put its special tokens around the prompt. Default true for "
        "a text, false for a conversation.",
    )
    return_token_strs: bool | None = Field(
        None, description="Return what each token spells too. Default false."
    )

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt or messages must be set, not both")
        return self


class TokenizeResponse(ResponseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = Field(
        default=None,
        description="With `return_token_strs`; bytes that are no whole character are U+FFFD.",
    )


class DetokenizeRequest(ModelRequest):
    """Tokens."""

    tokens: list[TokenId] = Field(description="Token ids; special tokens leave no text.")


class DetokenizeResponse(ResponseModel):
    """The text of tokens, special ones left out."""

    prompt: str


class TokenizerInfo(ResponseModel):
    """What `tokenizer_config.json` holds, so that further fields stand beside these."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    chat_template: str | None = Field(description="In Jinja.")
