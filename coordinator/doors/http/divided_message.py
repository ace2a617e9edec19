"""Parts of an output as OpenAI writes them: content, thinking, and calls of tools."""

from collections.abc import Sequence

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    OutputPart,
    ReasoningPart,
)
from coordinator.doors.http.schema.chat import AssistantMessage, ChatDelta
from coordinator.doors.http.schema.tools import FunctionCall, ToolCallDelta, ToolCallMessage


def delta_of(text: str, parts: Sequence[OutputPart]) -> ChatDelta:
    """What is new in an answer.

    Args:
        text: New content.
        parts: All that is new, divided.
    """
    delta = ChatDelta(content=text) if text or not parts else ChatDelta()
    reasoning = _reasoning(parts)
    if reasoning:
        delta.reasoning_content = delta.reasoning = reasoning
    calls: dict[int, ToolCallDelta] = {}
    for part in parts:
        match part:
            case CallBegins():
                function = FunctionCall(name=part.name, arguments="")
                calls[part.index] = ToolCallDelta(
                    index=part.index, id=part.call_id, type="function", function=function
                )
            case ArgumentsPart():
                if part.index not in calls:
                    function = FunctionCall(arguments="")
                    calls[part.index] = ToolCallDelta(index=part.index, function=function)
                calls[part.index].function.arguments += part.text
    if calls:
        delta.tool_calls = list(calls.values())
    return delta


def message_of(text: str, parts: Sequence[OutputPart]) -> AssistantMessage:
    """An answer; a call that was cut is left out.

    Args:
        text: Its content.
        parts: All of it, divided.
    """
    calls = [
        ToolCallMessage(
            id=begins.call_id,
            type="function",
            function=FunctionCall(name=begins.name, arguments=arguments),
        )
        for begins, arguments in whole_calls(parts)
    ]
    message = AssistantMessage(
        role="assistant", content=None if calls and not text else text, refusal=None
    )
    reasoning = _reasoning(parts)
    if reasoning:
        message.reasoning_content = message.reasoning = reasoning
    if calls:
        message.tool_calls = calls
    return message


def whole_calls(parts: Sequence[OutputPart]) -> list[tuple[CallBegins, str]]:
    """The calls of an output that are whole, each with its arguments as JSON."""
    calls: list[tuple[CallBegins, str]] = []
    begins: CallBegins | None = None
    arguments: list[str] = []
    for part in parts:
        match part:
            case CallBegins():
                begins, arguments = part, []
            case ArgumentsPart():
                arguments.append(part.text)
            case CallEnds():
                assert begins is not None, "a call ends that never began"
                calls.append((begins, "".join(arguments)))
    return calls


def _reasoning(parts: Sequence[OutputPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ReasoningPart))
