"""From a validated request of `/v1/messages` to what the engine is asked."""

import json
from collections.abc import Set as NameSet

from coordinator.core.grammar import Grammar
from coordinator.core.request_spec import ChatPrompt, RequestSpec
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.doors.http.message_turns import turns_of
from coordinator.doors.http.schema.anthropic import MessagesPrompt, MessagesRequest
from coordinator.doors.http.spec_parts import json_grammar, max_tokens_of, truncation
from coordinator.doors.http.template_parts import looks_for_thinking
from coordinator.doors.http.tool_parts import tool_of
from coordinator.doors.thinking_arguments import thinking_arguments
from coordinator.doors.tool_use import tool_use
from stagecoach.contract.errors import InvalidArgumentError

_EFFORTS = {"xhigh": "high", "max": "high"}
"""What chat templates call efforts that they do not know."""


def message_spec(request: MessagesRequest, request_id: str) -> RequestSpec:
    """What a conversation asks of the engine.

    Args:
        request: Validated.
        request_id: The engine's own id of it.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """
    thinking = request.thinking
    return RequestSpec(
        prompt=message_prompt(request),
        sampling=_sampling_params(request),
        max_tokens=max_tokens_of(request.max_tokens),
        stop=tuple(request.stop_sequences or ()),
        request_id=request_id,
        grammar=message_grammar(request),
        divides_output=True,
        tools=message_tool_use(request),
        max_thinking_tokens=None if thinking is None else thinking.budget_tokens,
    )


def message_prompt(request: MessagesPrompt) -> ChatPrompt:
    """A conversation as the engine takes it.

    Raises:
        InvalidArgumentError: There are too many messages, or the last one calls tools.
    """
    messages = tuple(turn.message for turn in turns_of(request))
    last = messages[-1]
    continues = last.role == "assistant"
    if continues and last.tool_calls:
        raise InvalidArgumentError(
            "prompt.chat.messages ends with calls of tools: their results must follow",
            field="prompt.chat.messages",
        )
    return ChatPrompt(
        messages=messages,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        tools=_shown_tools(request),
        template_arguments=_template_arguments(request),
    )


def message_grammar(request: MessagesPrompt) -> Grammar | None:
    """What the text must match.

    Raises:
        InvalidArgumentError: It is too long.
    """
    if request.form is None:
        return None
    return json_grammar(request.form.schema_)


def idle_message_fields(request: MessagesPrompt, variables: NameSet[str]) -> dict[str, str]:
    """Fields that say something to a chat template that it does not look for, as `IgnoredFields`.

    Args:
        request: Validated.
        variables: What the template looks for.
    """
    fields = []
    effort = _effort(request)
    if _thinks(request) and not looks_for_thinking(variables, effort=None):
        fields.append("thinking")
    if effort is not None and "reasoning_effort" not in variables:
        fields.append("output_config.effort")
    return {name: name for name in fields}


def _thinks(request: MessagesPrompt) -> bool:
    return request.thinking is not None and request.thinking.type != "disabled"


def _sampling_params(request: MessagesRequest) -> SamplingParams:
    """Unset fields take Anthropic's defaults, which are not the engine's."""
    kept = truncation(request.top_p, request.top_k)
    return SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=kept.top_p,
        top_k=kept.top_k,
    )


def _shown_tools(request: MessagesPrompt) -> tuple[Tool, ...]:
    """Tools that the model is shown: none where none may be called."""
    if request.tool_choice is not None and request.tool_choice.type == "none":
        return ()
    return tuple(
        tool_of(one.name, one.description, one.input_schema, strict=one.strict)
        for one in request.tools or ()
    )


def message_tool_use(request: MessagesPrompt) -> ToolUse | None:
    """Which tools may or must be called.

    Raises:
        InvalidArgumentError: One is to be called, and there is none, or not that one.
    """
    tools, choice = _shown_tools(request), request.tool_choice
    if choice is None:
        return tool_use(tools)
    return tool_use(
        tools,
        mode=ToolMode.AUTO if choice.type in ("auto", "none") else ToolMode.REQUIRED,
        only=choice.name,
        allows_several=not choice.disable_parallel_tool_use,
    )


def _effort(request: MessagesPrompt) -> str | None:
    return None if request.output_config is None else request.output_config.effort


def _template_arguments(request: MessagesPrompt) -> str:
    """What the chat template is given by name."""
    effort = _effort(request)
    known = None if effort is None else _EFFORTS.get(effort, effort)
    return json.dumps(thinking_arguments(thinks=_thinks(request), effort=known))
