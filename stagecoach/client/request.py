"""What a caller may ask of a completion, and its message.

Ranges are for the coordinator to check, which knows the model; here only types that cannot be
written are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Unpack, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from stagecoach.client.grammar import JsonSchema, grammar_message
from stagecoach.client.prompt import PromptLike, PromptOptions, prompt_message
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2

_SAMPLING_FIELDS = frozenset(
    field.name for field in generation_pb2.SamplingParams.DESCRIPTOR.fields
)
_MAX_UINT32 = 2**32 - 1
_WANTED = {
    FieldDescriptor.TYPE_UINT32: f"must be a whole number from 0 to {_MAX_UINT32}",
    FieldDescriptor.TYPE_UINT64: f"must be a whole number from 0 to {2**64 - 1}",
    FieldDescriptor.TYPE_FLOAT: "must be a number",
    FieldDescriptor.TYPE_BOOL: "must be True or False",
    FieldDescriptor.TYPE_STRING: "must be text",
}
"""What a field that is not repeated takes, by its type."""

_FORMS = frozenset(field.name for field in generation_pb2.Grammar.DESCRIPTOR.fields)


class GenerateOptions(PromptOptions, total=False):
    """Keyword arguments of `generate` and `complete`. Left out or None: the default."""

    model: str | None
    """A name of a model; the status lists them. Default: the only one."""
    max_tokens: int | None
    """Most tokens to generate; of more than fit, as many as fit. 0 where `prompt_logprobs` are all
    that is wanted. Default: as many as fit."""
    min_tokens: int | None
    """Tokens before which neither an end token nor a stop string ends the text. Default: 0."""
    temperature: float | None
    """Logits are divided by it; 0 takes the likeliest token. Default: 0."""
    top_p: float | None
    """Keep the smallest set of tokens that holds this share of the probability. Default: 1."""
    top_k: int | None
    """Keep this many of the most likely tokens; 0 keeps all. Default: 0."""
    min_p: float | None
    """Drop tokens less likely than this share of the most likely one. Default: 0."""
    repetition_penalty: float | None
    """Above 1, makes tokens of prompt and output less likely. Default: 1."""
    presence_penalty: float | None
    """Subtracted from the logits of tokens that the output has. Default: 0."""
    frequency_penalty: float | None
    """Subtracted from a token's logit once for each time that the output has it. Default: 0."""
    logit_bias: Mapping[int, float] | None
    """Added to logits, by token id. Default: nothing."""
    seed: int | None
    """The same seed gives the same text, but for the rounding of the model's arithmetic; -1 is no
    seed, as over HTTP. Default: drawn at random."""
    stop: str | Sequence[str]
    """The text ends before the first of these that it would contain. Default: none."""
    stop_token_ids: Sequence[int]
    """The text ends at any of these tokens. Default: none."""
    ignore_eos: bool
    """Do not end at the model's own end-of-sequence tokens. Default: False."""
    request_id: str | None
    """Name in the coordinator's logs, in use until the last step of the request is over, also when
    it was cancelled. Default: made by the coordinator."""
    cache_salt: str | None
    """Only requests of the same salt share the KV of a common prefix. Default: shared with all
    others that have none."""
    logprobs: int | None
    """Log-probabilities wanted with every token: 0 for that of the chosen token alone, up to 20 for
    those of as many of the most likely tokens too. Default: none."""
    prompt_logprobs: int | None
    """Log-probabilities wanted of every token of the prompt but the first: 0 for that of the token
    alone, up to 20 for those of as many of the most likely tokens too. The whole prompt is computed
    for them, whatever the prefix cache holds. Default: none."""
    json_schema: JsonSchema | None
    """The output is JSON that is valid against this schema. At most one of `json_schema`,
    `json_object`, `regex` and `lark` may be given. Default: any output."""
    json_object: bool
    """The output is a JSON object. Default: False."""
    regex: str | None
    """The output is what this regular expression, in Rust's syntax, matches as a whole. Default:
    any output."""
    lark: str | None
    """The output is what the rule `start` of this Lark grammar, in llguidance's dialect, makes.
    Default: any output."""
    divide_output: bool | None
    """Divide the output into content, thinking and calls of tools, as the model marks them: the
    text is content alone, to which stop strings and forms apply, and the parts of events and the
    completion tell the rest. Default: True where tools may be called, else False."""
    max_thinking_tokens: int | None
    """Tokens after which thinking ends, where the output is divided and the model ends thinking by
    one token. Default: the coordinator's own limit, which is the most in any case."""


def generate_request(
    prompt: PromptLike, **options: Unpack[GenerateOptions]
) -> generation_pb2.GenerateRequest:
    """Writes a request.

    Raises:
        InvalidArgumentError: A value has the wrong type, or one that no message can hold.
        TypeError: There is no such option.
    """
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise TypeError(f"generate() has no option {', '.join(sorted(unknown))}")
    of_prompt = cast(
        PromptOptions,
        {name: value for name, value in options.items() if name in PromptOptions.__annotations__},
    )
    message = generation_pb2.GenerateRequest(prompt=prompt_message(prompt, **of_prompt))
    for name, value in options.items():
        if value is None or name in _FORMS or name in of_prompt:
            continue
        if name == "stop" and isinstance(value, str):
            value = (value,)
        set_field(message.sampling if name in _SAMPLING_FIELDS else message, name, value)
    grammar = grammar_message(
        json_schema=options.get("json_schema"),
        json_object=options.get("json_object", False),
        regex=options.get("regex"),
        lark=options.get("lark"),
    )
    if grammar is not None:
        message.grammar.CopyFrom(grammar)
    return message


def tokenize_request(
    prompt: PromptLike, *, model: str | None, **options: Unpack[PromptOptions]
) -> generation_pb2.TokenizeRequest:
    """Writes a request for the tokens of a prompt.

    Raises:
        InvalidArgumentError: A value has the wrong type, or one that no message can hold.
        TypeError: There is no such option.
    """
    message = generation_pb2.TokenizeRequest(prompt=prompt_message(prompt, **options))
    if model is not None:
        set_field(message, "model", model)
    return message


def watch_request(model: str | None) -> generation_pb2.WatchStepsRequest:
    """Writes a request to watch the micro-batches of a model.

    Raises:
        InvalidArgumentError: The name is no text.
    """
    message = generation_pb2.WatchStepsRequest()
    if model is not None:
        set_field(message, "model", model)
    return message


def set_field(message: Message, name: str, value: object) -> None:
    """Writes a value that a caller gave into a message.

    Raises:
        InvalidArgumentError: It has the wrong type, or is one that the message cannot hold.
    """
    if name == "seed" and value == -1:
        return  # as over HTTP, where many clients write it for none
    if name == "max_tokens" and isinstance(value, int):
        value = min(value, _MAX_UINT32)  # more than fit become as many as fit
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError, OverflowError) as error:
        field = message.DESCRIPTOR.fields_by_name[name]
        wanted = "" if field.is_repeated else _WANTED.get(field.type, "")
        raise InvalidArgumentError(
            f"{name} is {value!r:.100}, {wanted or 'which it cannot be'}", field=name
        ) from error
