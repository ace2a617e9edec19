"""From a validated request of a client to what the engine is asked, once for every choice."""

import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
    TokenPrompt,
)
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.tools import Tool, ToolCall, ToolMode, ToolUse
from coordinator.doors.http.schema.chat import ChatCompletionRequest, Message
from coordinator.doors.http.schema.completion import DEFAULT_MAX_TOKENS, CompletionRequest
from coordinator.doors.http.schema.conversation import ConversationFields
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.response_format import (
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    StructuredOutputs,
    TextFormat,
)
from coordinator.doors.http.schema.sampling import MAX_CHOICES, SamplingFields
from coordinator.doors.http.schema.tokens import TokenizeRequest
from coordinator.doors.http.schema.tools import (
    AllowedToolsChoice,
    MessageToolCall,
    NamedTool,
)
from coordinator.doors.http.spec_parts import NO_SEED, json_grammar, max_tokens_of, truncation
from coordinator.doors.http.template_parts import template_arguments
from coordinator.doors.http.tool_parts import tool_of
from coordinator.doors.tool_use import tool_use
from stagecoach.contract.errors import InvalidArgumentError

_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")
"""Characters of regular expressions that are not themselves."""

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
        divides_output=True,
        tools=_tool_use(request),
        max_tokens=max_tokens_of(request.max_completion_tokens or request.max_tokens),
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
    prompts = list(_prompts(request, request.prompt))
    spec = replace(
        _spec(request, prompts[0]),
        max_tokens=max_tokens_of(
            DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        ),
        min_tokens=request.min_tokens or 0,
        logprobs=request.logprobs,
        prompt_logprobs=_prompt_logprobs(request),
    )
    # A long schema is written and checked once, not for each prompt.
    specs = [replace(spec, prompt=prompt) for prompt in prompts]
    return _choices(specs, request, request_id)


def embedding_specs(request: EmbeddingRequest, request_id: str) -> list[RequestSpec]:
    """What one or more texts ask of the engine, in their order.

    Args:
        request: Validated.
        request_id: The engine's own ids are made of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    params = EmbeddingParams(
        pooling=Pooling(request.pooling or Pooling.LAST),
        normalize=request.normalize is not False,
        dimensions=request.dimensions,
    )
    return [
        RequestSpec(
            prompt=prompt,
            max_tokens=0,
            request_id=f"{request_id}-{index}",
            cache_salt=request.cache_salt,
            embedding=params,
        )
        for index, prompt in enumerate(_prompts(request, request.input))
    ]


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
        tools=_shown_tools(request),
        template_arguments=template_arguments(request),
    )


def text_prompt(
    request: CompletionRequest | EmbeddingRequest | TokenizeRequest, text: str
) -> TextPrompt:
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
            return json_grammar(None)
        case JsonSchemaFormat() as form:
            return json_grammar(form.json_schema.schema_)


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
    kept = truncation(request.top_p, request.top_k)
    return SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=kept.top_p,
        top_k=kept.top_k,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=MappingProxyType(bias),
    )


def _prompts(
    request: CompletionRequest | EmbeddingRequest, prompt: str | Sequence[int | str | Sequence[int]]
) -> Iterator[TextPrompt | TokenPrompt]:
    """Each of the prompts that stand in a field of a request."""
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
    calls = message.tool_calls or () if role == "assistant" else ()
    return ChatMessage(
        role=role,
        content=content_text(message),
        name=message.name,
        tool_calls=tuple(map(_tool_call, calls)),
        tool_call_id=message.tool_call_id if role == "tool" else None,
        reasoning=(message.reasoning_content or message.reasoning) if role == "assistant" else None,
    )


def _tool_call(call: MessageToolCall) -> ToolCall:
    return ToolCall(
        call_id=call.id,
        name=call.function.name,
        arguments=call.function.arguments,
    )


def _shown_tools(request: ConversationFields) -> tuple[Tool, ...]:
    """Tools that the model is shown: none where none may be called."""
    if request.tool_choice == "none":
        return ()
    functions = [one.function for one in request.tools or ()]
    return tuple(
        tool_of(one.name, one.description, one.parameters, strict=one.strict) for one in functions
    )


def _tool_use(request: ChatCompletionRequest) -> ToolUse | None:
    """Which tools may or must be called.

    Raises:
        InvalidArgumentError: One is to be called, and there is none, or not that one.
    """
    tools = _shown_tools(request)
    allows_several = request.parallel_tool_calls is not False
    match request.tool_choice:
        case NamedTool() as choice:
            return tool_use(tools, only=choice.function.name)
        case AllowedToolsChoice(allowed_tools=allowed):
            return tool_use(
                tools,
                mode=ToolMode(allowed.mode),
                allowed=frozenset(one.function.name for one in allowed.tools),
                allows_several=allows_several,
            )
        case "required":
            return tool_use(tools, mode=ToolMode.REQUIRED, allows_several=allows_several)
        case _:
            return tool_use(tools, allows_several=allows_several)


def _structured(wanted: StructuredOutputs) -> Grammar:
    if wanted.regex is not None:
        return Grammar(kind=GrammarKind.REGEX, text=wanted.regex)
    if wanted.grammar is not None:
        return Grammar(kind=GrammarKind.LARK, text=wanted.grammar)
    if wanted.choice is not None:
        texts = "|".join(_META.sub(r"\\\g<0>", text) for text in wanted.choice)
        return Grammar(kind=GrammarKind.REGEX, text=f"({texts})")
    return json_grammar(None if wanted.json_object else wanted.json_)
