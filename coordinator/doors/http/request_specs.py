"""From a validated request of a client to what the engine is asked, once for every choice."""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import (
    MAX_UINT32,
    ChatMessage,
    ChatPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.http.schema.chat import ChatCompletionRequest, Message
from coordinator.doors.http.schema.completion import DEFAULT_MAX_TOKENS, CompletionRequest
from coordinator.doors.http.schema.response_format import (
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    StructuredOutputs,
    TextFormat,
)
from coordinator.doors.http.schema.sampling import MAX_CHOICES, NO_LIMIT, SamplingFields
from coordinator.doors.http.schema.tokens import TokenizeRequest
from stagecoach.contract.errors import InvalidArgumentError

_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
"""Characters of regular expressions that are not themselves."""

NO_SEED = -1
"""What other servers take for no seed."""

Specs = tuple[tuple[RequestSpec, ...], ...]
"""The choices of each prompt, in order; at least one of each."""


def chat_specs(request: ChatCompletionRequest, request_id: str) -> Specs:
    """What a conversation asks of the engine.

    Args:
        request: Validated.
        request_id: The engine's own ids are made of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    spec = replace(
        _spec(request, chat_prompt(request, request.messages)),
        max_tokens=_max_tokens(request.max_completion_tokens or request.max_tokens),
        min_tokens=request.min_tokens or 0,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    return _choices([spec], request, request_id)


def completion_specs(request: CompletionRequest, request_id: str) -> Specs:
    """What one or more prompts ask of the engine.

    Args:
        request: Validated.
        request_id: The engine's own ids are made of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    prompts = list(_prompts(request))
    spec = replace(
        _spec(request, prompts[0]),
        max_tokens=_max_tokens(
            DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        ),
        min_tokens=request.min_tokens or 0,
        logprobs=request.logprobs,
        prompt_logprobs=_prompt_logprobs(request),
    )
    # A long schema is written and checked once, not for each prompt.
    specs = [replace(spec, prompt=prompt) for prompt in prompts]
    return _choices(specs, request, request_id)


def chat_prompt(
    request: ChatCompletionRequest | TokenizeRequest, messages: Sequence[Message]
) -> ChatPrompt:
    """A conversation as the engine takes it.

    Raises:
        InvalidArgumentError: There is no message, or there are too many.
    """
    return ChatPrompt(
        messages=tuple(map(_chat_message, messages)),
        add_generation_prompt=request.begins_message,
        continue_final_message=request.continue_final_message or False,
        add_special_tokens=request.add_special_tokens or False,
    )


def text_prompt(request: CompletionRequest | TokenizeRequest, text: str) -> TextPrompt:
    """A text as the engine takes it.

    Raises:
        InvalidArgumentError: It is empty.
    """
    return TextPrompt(text=text, add_special_tokens=request.add_special_tokens is not False)


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of several choices: its own, and always the same.

    Args:
        seed: Seed of the request.
        index: Index of the choice; the first keeps the seed of the request.
    """
    if index == 0:
        return seed % 2**64
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def grammar(request: SamplingFields) -> Grammar | None:
    """What the output must follow.

    Raises:
        InvalidArgumentError: It is too long.
    """
    if request.structured_outputs is not None:
        return _structured(request.structured_outputs)
    match request.response_format:
        case None | TextFormat():
            return None
        case JsonObjectFormat() | JsonSchemaFormat(json_schema=JsonSchema(schema_=None)):
            return Grammar(kind=GrammarKind.JSON_OBJECT)
        case JsonSchemaFormat() as form:
            text = json.dumps(form.json_schema.schema_, ensure_ascii=False)
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=text)


def _max_tokens(wanted: int | None) -> int | None:
    """What the engine takes; it gives no more than fit anyway."""
    return None if wanted in (None, NO_LIMIT) else min(wanted, MAX_UINT32)


def _prompt_logprobs(request: CompletionRequest) -> int | None:
    """The most that any part of the answer shows of the prompt."""
    wanted = [] if request.prompt_logprobs is None else [request.prompt_logprobs]
    if request.echo and request.logprobs is not None:
        wanted.append(request.logprobs)
    return max(wanted, default=None)


def _choices(specs: Sequence[RequestSpec], request: SamplingFields, request_id: str) -> Specs:
    num_choices = request.n or 1
    if len(specs) * num_choices > MAX_CHOICES:
        raise InvalidArgumentError(
            f"n is {num_choices} and there are {len(specs)} prompts: at most {MAX_CHOICES}"
            " completions are made for one request",
            field="n",
        )
    numbers = iter(range(len(specs) * num_choices))
    return tuple(
        tuple(
            _numbered(one, next(numbers), request, request_id)
            # The first alone is told of the prompt, and the others hear it from there.
            for one in (spec, *(num_choices - 1) * (replace(spec, prompt_logprobs=None),))
        )
        for spec in specs
    )


def _numbered(
    spec: RequestSpec, index: int, request: SamplingFields, request_id: str
) -> RequestSpec:
    sampling = spec.sampling
    if request.seed not in (None, NO_SEED):
        sampling = replace(sampling, seed=choice_seed(request.seed, index))
    return replace(spec, sampling=sampling, request_id=f"{request_id}-{index}")


def _spec(request: SamplingFields, prompt: Prompt) -> RequestSpec:
    stop = request.stop or ()
    return RequestSpec(
        prompt=prompt,
        sampling=_sampling_params(request),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos or False,
        cache_salt=request.cache_salt,
        grammar=grammar(request),
    )


def _sampling_params(request: SamplingFields) -> SamplingParams:
    """Unset fields take OpenAI's defaults, which are not the engine's."""
    bias = {int(token_id): value for token_id, value in (request.logit_bias or {}).items()}
    return SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        top_k=1 if request.top_p == 0 else max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=MappingProxyType(bias),
    )


def _prompts(request: CompletionRequest) -> Iterator[TextPrompt | TokenPrompt]:
    prompt: str | Sequence[int | str | Sequence[int]] = request.prompt
    if isinstance(prompt, str):
        yield text_prompt(request, prompt)
        return
    if isinstance(prompt, array):  # of a large body
        yield TokenPrompt(token_ids=prompt)
        return
    token_ids = tuple(one for one in prompt if isinstance(one, int))
    if token_ids:
        yield TokenPrompt(token_ids=token_ids)
        return
    for one in prompt:
        if isinstance(one, str):
            yield text_prompt(request, one)
        elif isinstance(one, array):
            yield TokenPrompt(token_ids=one)
        elif isinstance(one, list):
            yield TokenPrompt(token_ids=tuple(one))


def content_text(message: Message) -> str:
    """What a message says: the texts of its parts, joined."""
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _chat_message(message: Message) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role=role, content=content_text(message), name=message.name)


def _structured(wanted: StructuredOutputs) -> Grammar:
    if wanted.regex is not None:
        return Grammar(kind=GrammarKind.REGEX, text=wanted.regex)
    if wanted.grammar is not None:
        return Grammar(kind=GrammarKind.LARK, text=wanted.grammar)
    if wanted.choice is not None:
        texts = "|".join(_META.sub(r"\\\g<0>", text) for text in wanted.choice)
        return Grammar(kind=GrammarKind.REGEX, text=f"({texts})")
    if wanted.json_object:
        return Grammar(kind=GrammarKind.JSON_OBJECT)
    schema = wanted.json_
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=text)
