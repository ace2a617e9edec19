"""From a validated request of `/v1/responses` to what the engine is asked, and what is repeated."""

import json
from collections.abc import Set as NameSet

from coordinator.core.grammar import Grammar
from coordinator.core.request_spec import ChatMessage, ChatPrompt, RequestSpec
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.http.responses_tools import (
    shown_tools,
    used_by,
    used_choice,
    used_tools,
)
from coordinator.doors.http.schema.response_format import JsonObjectFormat
from coordinator.doors.http.schema.responses import JsonSchemaTextFormat, ResponsesRequest
from coordinator.doors.http.schema.responses_answer import (
    ResponseObject,
    UsedReasoning,
    UsedText,
)
from coordinator.doors.http.spec_parts import json_grammar, max_tokens_of, truncation
from coordinator.doors.http.template_parts import looks_for_thinking
from coordinator.doors.thinking_arguments import thinking_arguments

_EFFORT = "reasoning.effort"


def responses_spec(
    request: ResponsesRequest, messages: tuple[ChatMessage, ...], request_id: str
) -> RequestSpec:
    """What a response asks of the engine.

    Args:
        request: Validated.
        messages: The whole conversation.
        request_id: Name in logs.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    tools = shown_tools(request)
    kept = truncation(request.top_p)
    return RequestSpec(
        prompt=ChatPrompt(
            messages=messages, tools=tools, template_arguments=_template_arguments(request)
        ),
        sampling=SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=kept.top_p,
            top_k=kept.top_k,
        ),
        max_tokens=max_tokens_of(request.max_output_tokens),
        logprobs=request.num_logprobs,
        grammar=text_grammar(request),
        divides_output=True,
        tools=used_by(request, tools),
        request_id=request_id,
    )


def text_grammar(request: ResponsesRequest) -> Grammar | None:
    """What the text must follow.

    Raises:
        InvalidArgumentError: It is too long.
    """
    form = None if request.text is None else request.text.format
    match form:
        case JsonSchemaTextFormat():
            return json_grammar(form.schema_)
        case JsonObjectFormat():
            return json_grammar(None)
        case _:
            return None


def idle_reasoning(request: ResponsesRequest, variables: NameSet[str]) -> dict[str, str]:
    """What is said to a chat template that does not look for it, as `IgnoredFields`.

    Args:
        request: Validated.
        variables: What the template looks for.
    """
    effort = _effort(request)
    if effort is None or looks_for_thinking(variables, effort=effort):
        return {}
    return {_EFFORT: _EFFORT}


def response_frame(
    request: ResponsesRequest, response_id: str, *, created_s: int, model: str
) -> ResponseObject:
    """A response that has just begun: what was asked, with what holds where nothing was said.

    Args:
        request: Validated.
        response_id: Its id.
        created_s: Unix time.
        model: Name of the model.
    """
    return ResponseObject(
        id=response_id,
        created_at=created_s,
        status="in_progress",
        model=model,
        instructions=request.instructions,
        previous_response_id=request.previous_response_id,
        max_output_tokens=max_tokens_of(request.max_output_tokens),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_logprobs=request.top_logprobs or 0,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        tool_choice=used_choice(request),
        tools=used_tools(request),
        text=UsedText(format=_used_format(request)),
        reasoning=UsedReasoning(effort=_effort(request)),
        store=request.store is not False,
        metadata=request.metadata or {},
    )


def _effort(request: ResponsesRequest) -> str | None:
    return None if request.reasoning is None else request.reasoning.effort


def _template_arguments(request: ResponsesRequest) -> str:
    """What the chat template is given by name, as for the field `reasoning_effort` of a chat."""
    arguments = thinking_arguments(thinks=None, effort=_effort(request))
    return json.dumps(arguments, ensure_ascii=False)


def _used_format(request: ResponsesRequest) -> dict[str, object]:
    form = None if request.text is None else request.text.format
    if form is None:
        return {"type": "text"}
    return form.model_dump(by_alias=True, exclude_unset=True)
