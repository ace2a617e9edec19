"""The strings of a conversation that its client wrote, wherever they stand in it."""

import json
from collections.abc import Callable
from dataclasses import replace

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from coordinator.core.tools import Tool, ToolCall
from stagecoach.contract.errors import InvalidArgumentError

OnString = Callable[[str, str], str]
"""Takes a string and the field that it stands in; returns what shall stand there."""


def with_strings(prompt: ChatPrompt, change: OnString) -> ChatPrompt:
    """The same conversation with other strings; names of tools and roles stay.

    Raises:
        InvalidArgumentError: What must be a JSON object is none.
    """
    tools = [_tool(tool, f"prompt.chat.tools[{i}]", change) for i, tool in enumerate(prompt.tools)]
    messages = [
        _message(message, f"prompt.chat.messages[{index}]", change)
        for index, message in enumerate(prompt.messages)
    ]
    arguments = _json(prompt.template_arguments, "prompt.chat.template_arguments", change)
    return replace(
        prompt, messages=tuple(messages), tools=tuple(tools), template_arguments=arguments
    )


def _message(message: ChatMessage, field: str, change: OnString) -> ChatMessage:
    return replace(
        message,
        content=change(message.content, f"{field}.content"),
        name=_optional(message.name, f"{field}.name", change),
        tool_call_id=_optional(message.tool_call_id, f"{field}.tool_call_id", change),
        reasoning=_optional(message.reasoning, f"{field}.reasoning", change),
        tool_calls=tuple(
            _call(call, f"{field}.tool_calls[{index}]", change)
            for index, call in enumerate(message.tool_calls)
        ),
    )


def _call(call: ToolCall, field: str, change: OnString) -> ToolCall:
    return replace(
        call,
        call_id=change(call.call_id, f"{field}.id"),
        name=change(call.name, f"{field}.name"),
        arguments=_json(call.arguments, f"{field}.arguments", change),
    )


def _tool(tool: Tool, field: str, change: OnString) -> Tool:
    return replace(
        tool,
        description=_optional(tool.description, f"{field}.description", change),
        parameters=None
        if tool.parameters is None
        else _json(tool.parameters, f"{field}.parameters", change),
    )


def _optional(text: str | None, field: str, change: OnString) -> str | None:
    return None if text is None else change(text, field)


def _json(text: str, field: str, change: OnString) -> str:
    """A JSON object with other strings in it; the same text where none changes."""
    is_changed = False

    def changed(value: object) -> object:
        nonlocal is_changed
        if isinstance(value, str):
            other = change(value, field)
            is_changed |= other != value
            return other
        if isinstance(value, list):
            return [changed(one) for one in value]
        if isinstance(value, dict):
            names = {name: change(name, field) for name in value}
            is_changed |= any(name != other for name, other in names.items())
            return {names[name]: changed(one) for name, one in value.items()}
        return value

    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise InvalidArgumentError(f"{field} is JSON, but no object", field=field)
        value = changed(value)
        return json.dumps(value, ensure_ascii=False) if is_changed else text
    except ValueError as error:
        raise InvalidArgumentError(f"{field} is not JSON: {error}", field=field) from error
    except RecursionError as error:
        raise InvalidArgumentError(f"{field} is nested too deeply", field=field) from error
