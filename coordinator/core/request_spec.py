"""A request as its client put it: the static limits are checked, nothing is tokenized yet.

Doors (gRPC, HTTP) build a `RequestSpec`; the engine turns it into a `Request`. Field names in
errors are paths into `stagecoach.v1.GenerateRequest`, such as `sampling.top_p`, or are those of
`EmbedRequest`; a door that calls them otherwise renames them.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.core.embedding import EmbeddingParams
from coordinator.core.grammar import Grammar
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.tools import Tool, ToolCall, ToolUse
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.prompt_logits import MAX_PROMPT_CANDIDATES

CHAT_ROLES = frozenset({"system", "user", "assistant", "tool"})
DEVELOPER_ROLE = "developer"
"""What newer clients call `system`; a door turns it into that."""
MAX_CHAT_MESSAGES = 4096
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
"""Most characters of one stop string; every new piece of text is looked through for it."""
MAX_STOP_TOKEN_IDS = 64
MAX_REQUEST_ID_CHARS = 128
MAX_CACHE_SALT_CHARS = 128
MAX_LOGPROBS = MAX_PROMPT_CANDIDATES
MAX_UINT32 = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Plain text, whose special tokens are read as such.

    Raises:
        InvalidArgumentError: The text is empty.
    """

    text: str
    add_special_tokens: bool = True
    """Let the tokenizer put around it what the model wants there, such as a begin token; one that
    the text begins with itself is not repeated."""

    def __post_init__(self) -> None:
        """Refuses empty text."""
        if not self.text:
            raise InvalidArgumentError("prompt.text is empty", field="prompt.text")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids, used as they are; whether they are in the vocabulary is for the engine to check.

    Raises:
        InvalidArgumentError: There is none, or one is not an unsigned 32-bit number.
    """

    token_ids: Sequence[int]
    """A tuple, or an array of unsigned 32-bit numbers where there are many."""

    def __post_init__(self) -> None:
        """Refuses an empty prompt and impossible ids."""
        if not self.token_ids:
            raise InvalidArgumentError("prompt.token_ids is empty", field="prompt.token_ids")
        _check_token_ids(self.token_ids, "prompt.token_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation.

    Raises:
        InvalidArgumentError: The role is unknown.
    """

    role: str
    """One of `CHAT_ROLES`."""
    content: str = ""
    name: str | None = None
    """Who of several that have the role; for templates that tell them apart."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the assistant asked for."""
    tool_call_id: str | None = None
    """Id of the call that a message of the role `tool` answers."""
    reasoning: str | None = None
    """What the assistant thought before; most templates show it for the last turns only."""

    def __post_init__(self) -> None:
        """Refuses unknown roles."""
        if self.role not in CHAT_ROLES:
            raise InvalidArgumentError(
                f"prompt.chat.messages has a message whose role is {self.role[:32]!r}, not one of"
                f" {', '.join(sorted(CHAT_ROLES | {DEVELOPER_ROLE}))}",
                field="prompt.chat.messages",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, oldest message first, rendered by the model's chat template.

    Raises:
        InvalidArgumentError: There is no message, or there are too many; or it is asked to go on
            with the last message and to begin a new one.
    """

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    """End with what the assistant's next message begins with."""
    continue_final_message: bool = False
    """End inside the last message, so that the output goes on with it; not together with
    `add_generation_prompt`."""
    add_special_tokens: bool = False
    """Let the tokenizer put its special tokens around what the template wrote, which has its own;
    a begin token is not repeated."""
    tools: tuple[Tool, ...] = ()
    """Tools that the model is shown."""
    template_arguments: str = "{}"
    """What else the template is given, by name, as a JSON object; it may know none of it."""

    def __post_init__(self) -> None:
        """Refuses an empty conversation."""
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidArgumentError(
                "prompt.chat.continue_final_message and prompt.chat.add_generation_prompt are both"
                " true: the output either goes on with the last message or begins a new one",
                field="prompt.chat.continue_final_message",
                other_field="prompt.chat.add_generation_prompt",
            )
        if not self.messages:
            raise InvalidArgumentError(
                "prompt.chat.messages is empty", field="prompt.chat.messages"
            )
        if len(self.messages) > MAX_CHAT_MESSAGES:
            raise too_many_messages(len(self.messages))

    @property
    def num_chars(self) -> int:
        """Characters of what the client wrote, but for names of fields."""
        return sum(
            len(one.content)
            + len(one.name or "")
            + len(one.reasoning or "")
            + sum(len(call.arguments) for call in one.tool_calls)
            for one in self.messages
        ) + sum(len(one.description or "") + len(one.parameters or "") for one in self.tools)


def too_many_messages(num_messages: int) -> InvalidArgumentError:
    """What is said of a conversation with more messages than are allowed."""
    return InvalidArgumentError(
        f"prompt.chat.messages has {num_messages} messages, at most {MAX_CHAT_MESSAGES} are"
        " allowed",
        field="prompt.chat.messages",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """What the engine made of a prompt, to be used again as it is; never from a client."""

    token_ids: Sequence[int]
    """Token ids of the prompt, told in `Accepted`."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt | EncodedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """One completion to make.

    Raises:
        InvalidArgumentError: A value is out of its static range; the error names the field.
    """

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """Most tokens to generate. None, or more than fit: as many as fit. With 0,
    nothing is computed but log-probabilities and the embedding of the prompt; where these are not
    wanted either, the request ends at once with its prompt."""
    min_tokens: int = 0
    """Tokens before which neither an end token nor a stop string ends the output; a stop string
    that begins in them does not count. A grammar that allows nothing else ends it all the same."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these that it would contain."""
    stop_token_ids: tuple[int, ...] = ()
    """Generation ends at any of these ids."""
    ignore_eos: bool = False
    """Do not end at the model's own end-of-sequence tokens."""
    request_id: str | None = None
    """Name in logs. None: made by the engine."""
    cache_salt: str | None = None
    """Only requests of the same salt share the KV of a prefix; 1 to 128 characters. None is a salt
    like any other."""
    logprobs: int | None = None
    """Log-probabilities wanted with every token: None for none, 0 for that of the chosen token
    alone, up to 20 for those of as many of the most likely tokens too."""
    prompt_logprobs: int | None = None
    """Log-probabilities wanted of every token of the prompt but the first: None for none, 0 for
    that of the token alone, up to 20 for those of as many of the most likely tokens too."""
    embedding: EmbeddingParams | None = None
    """How the prompt becomes a vector, told at the end; None: it does not."""
    grammar: Grammar | None = None
    """What the whole output must match; it ends when nothing can follow. None: anything. Where the
    output is divided: what its content must match."""
    divides_output: bool = False
    """Divide the output into content, thinking and calls of tools, as the model marks them."""
    tools: ToolUse | None = None
    """Tools that the output may or must call; only where it is divided. None: none."""

    max_thinking_tokens: int | None = None
    """Tokens after which thinking is ended, where the output is divided and the model ends thinking
    by one token. None: as the operator of the coordinator set it, which is the most in any case."""

    def __post_init__(self) -> None:
        assert self.tools is None or self.divides_output, "calls are read from a divided output"
        if self.max_tokens is not None and not 0 <= self.max_tokens <= MAX_UINT32:
            raise InvalidArgumentError(
                f"max_tokens is {self.max_tokens}, must be in [0, {MAX_UINT32}]",
                field="max_tokens",
            )
        if not 0 <= self.min_tokens <= MAX_UINT32:
            raise InvalidArgumentError(
                f"min_tokens is {self.min_tokens}, must be in [0, {MAX_UINT32}]",
                field="min_tokens",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            # A door may have set that limit itself, so that it is not named.
            raise InvalidArgumentError(
                f"min_tokens is {self.min_tokens}, must be in [0, {self.max_tokens}]: the output"
                f" has at most {self.max_tokens} tokens",
                field="min_tokens",
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidArgumentError(
                f"stop has {len(self.stop)} strings, at most {MAX_STOP_STRINGS} are allowed",
                field="stop",
            )
        if "" in self.stop:
            raise InvalidArgumentError("stop has an empty string", field="stop")
        longest = max(map(len, self.stop), default=0)
        if longest > MAX_STOP_CHARS:
            raise InvalidArgumentError(
                f"stop has a string of {longest} characters, at most {MAX_STOP_CHARS} are allowed",
                field="stop",
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidArgumentError(
                f"stop_token_ids has {len(self.stop_token_ids)} ids, at most "
                f"{MAX_STOP_TOKEN_IDS} are allowed",
                field="stop_token_ids",
            )
        _check_token_ids(self.stop_token_ids, "stop_token_ids")
        if self.request_id is not None and not 1 <= len(self.request_id) <= MAX_REQUEST_ID_CHARS:
            raise InvalidArgumentError(
                f"request_id has {len(self.request_id)} characters, must have 1 to "
                f"{MAX_REQUEST_ID_CHARS}",
                field="request_id",
            )
        if self.request_id is not None and not self.request_id.isprintable():
            raise InvalidArgumentError(
                "request_id has characters that cannot be printed", field="request_id"
            )
        if self.cache_salt is not None and not 1 <= len(self.cache_salt) <= MAX_CACHE_SALT_CHARS:
            raise InvalidArgumentError(
                f"cache_salt has {len(self.cache_salt)} characters, must have 1 to "
                f"{MAX_CACHE_SALT_CHARS}",
                field="cache_salt",
            )
        for name, wanted in (
            ("logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ):
            if wanted is not None and not 0 <= wanted <= MAX_LOGPROBS:
                raise InvalidArgumentError(
                    f"{name} is {wanted}, must be in [0, {MAX_LOGPROBS}]", field=name
                )


def _check_token_ids(token_ids: Sequence[int], name: str) -> None:
    if isinstance(token_ids, array) and token_ids.typecode == "I":
        return
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) <= MAX_UINT32):
        return
    for index, token_id in enumerate(token_ids):  # to say which
        if not 0 <= token_id <= MAX_UINT32:
            raise InvalidArgumentError(
                f"{name}[{index}] is {token_id}, must be in [0, {MAX_UINT32}]", field=name
            )
