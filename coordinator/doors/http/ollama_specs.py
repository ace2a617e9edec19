"""From a validated request of a route under `/api` to what the engine is asked."""

import json
from collections.abc import Sequence
from collections.abc import Set as NameSet
from dataclasses import replace

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.grammar import Grammar
from coordinator.core.request_spec import (
    MAX_UINT32,
    ChatMessage,
    ChatPrompt,
    Prompt,
    RequestSpec,
    TextPrompt,
)
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.http.ollama_turns import ollama_turns
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
    Options,
)
from coordinator.doors.http.spec_parts import NO_SEED, json_grammar, truncation
from coordinator.doors.http.tool_parts import tool_of
from coordinator.doors.thinking_arguments import THINKING_SWITCHES, thinking_arguments
from coordinator.doors.tool_use import tool_use

_TEMPERATURE, _TOP_P, _TOP_K = 0.8, 0.9, 40
"""What Ollama takes where a request says nothing."""

_NO_OPTIONS = Options.model_validate({})


def ollama_chat_spec(request: OllamaChatRequest, request_id: str) -> RequestSpec:
    """What a conversation asks of the engine.

    Args:
        request: Validated; it has messages.
        request_id: The engine's own id of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    functions = [one.function for one in request.tools or ()]
    tools = [
        tool_of(one.name, one.description, one.parameters, strict=one.strict) for one in functions
    ]
    messages = tuple(turn.message for turn in ollama_turns(request))
    prompt = ChatPrompt(
        messages=messages, tools=tuple(tools), template_arguments=_template_arguments(request)
    )
    spec = _spec(request, prompt, request_id)
    return replace(spec, divides_output=True, tools=tool_use(tools))


def ollama_generate_spec(request: OllamaGenerateRequest, request_id: str) -> RequestSpec:
    """What a text asks of the engine.

    Args:
        request: Validated; it has a prompt.
        request_id: The engine's own id of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    text = request.prompt or ""
    if request.raw:
        return _spec(request, TextPrompt(text=text), request_id)
    messages = [ChatMessage(role="user", content=text)]
    if request.system:
        messages.insert(0, ChatMessage(role="system", content=request.system))
    prompt = ChatPrompt(messages=tuple(messages), template_arguments=_template_arguments(request))
    return replace(_spec(request, prompt, request_id), divides_output=True)


def ollama_embedding_specs(
    texts: Sequence[str], request_id: str, *, normalizes: bool, num_dimensions: int | None = None
) -> list[RequestSpec]:
    """What texts that become vectors ask of the engine, in their order.

    Args:
        texts: Validated.
        request_id: The engine's own ids are made of it.
        normalizes: Whether each vector gets the length 1.
        num_dimensions: How many of the first elements are kept; None: all.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    params = EmbeddingParams(pooling=Pooling.LAST, normalize=normalizes, dimensions=num_dimensions)
    return [
        RequestSpec(
            prompt=TextPrompt(text=text),
            max_tokens=0,
            request_id=f"{request_id}-{index}",
            embedding=params,
        )
        for index, text in enumerate(texts)
    ]


def ollama_grammar(request: OllamaRequest) -> Grammar | None:
    """What the text must match.

    Raises:
        InvalidArgumentError: It is too long.
    """
    if request.format in (None, ""):
        return None
    if request.format == "json":
        return json_grammar(None)
    return json_grammar(request.format)


def idle_ollama_fields(request: OllamaRequest, variables: NameSet[str]) -> dict[str, str]:
    """Fields that say something to a chat template that it does not look for, as `IgnoredFields`.

    Args:
        request: Validated.
        variables: What the template looks for.
    """
    is_idle = bool(request.think) and variables.isdisjoint({"reasoning_effort", *THINKING_SWITCHES})
    return {"think": "think"} if is_idle else {}


def _spec(request: OllamaRequest, prompt: Prompt, request_id: str) -> RequestSpec:
    options = request.options or _NO_OPTIONS
    num_predict = options.num_predict or 0
    return RequestSpec(
        prompt=prompt,
        sampling=_sampling_params(options),
        max_tokens=min(num_predict, MAX_UINT32) if num_predict > 0 else None,
        stop=tuple(options.stop or ()),
        request_id=request_id,
        grammar=ollama_grammar(request),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _sampling_params(options: Options) -> SamplingParams:
    top_p = _TOP_P if options.top_p is None else options.top_p
    kept = truncation(top_p, _TOP_K if options.top_k is None else options.top_k)
    return SamplingParams(
        temperature=_TEMPERATURE if options.temperature is None else options.temperature,
        top_p=kept.top_p,
        top_k=kept.top_k,
        min_p=options.min_p or 0.0,
        repetition_penalty=options.repeat_penalty or 1.0,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        seed=None if options.seed in (None, NO_SEED) else options.seed % 2**64,
    )


def _template_arguments(request: OllamaRequest) -> str:
    """What the chat template is given by name."""
    think = request.think
    thinks = None if think is None else think is not False
    effort = think if isinstance(think, str) else None
    return json.dumps(thinking_arguments(thinks=thinks, effort=effort))
