"""`stagecoach.v1.Chat` -> domain types: messages, tools, and what a chat template is given.

Texts that must be JSON are read where the conversation is rendered, apart from the event loop; only
the arguments of the template are read here, which are short.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType

from coordinator.core.request_spec import (
    DEVELOPER_ROLE,
    MAX_CHAT_MESSAGES,
    ChatMessage,
    ChatPrompt,
    too_many_messages,
)
from coordinator.core.tools import MAX_TOOL_CALLS, MAX_TOOLS, Tool, ToolCall, ToolMode, ToolUse
from coordinator.doors.grpc.unknown_fields import refuse_unknown_fields
from coordinator.doors.thinking_arguments import MAX_EFFORT_CHARS, thinking_arguments
from coordinator.doors.tool_use import tool_use
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2

MAX_TEMPLATE_CHARS = 32 * 1024
"""Characters of the arguments of a chat template; to read them takes a millisecond at most."""

MAX_CHAT_CALLS = 4096
"""Calls in all messages of a conversation."""

_CHAT = "prompt.chat"
_TOOLS = f"{_CHAT}.tools"
_CHOICE = f"{_CHAT}.tool_choice"
_ARGUMENTS = f"{_CHAT}.template_arguments"

_MODES: Mapping[int, ToolMode | None] = MappingProxyType(
    {
        generation_pb2.TOOL_MODE_UNSPECIFIED: ToolMode.AUTO,
        generation_pb2.TOOL_MODE_AUTO: ToolMode.AUTO,
        generation_pb2.TOOL_MODE_NONE: None,
        generation_pb2.TOOL_MODE_REQUIRED: ToolMode.REQUIRED,
    }
)
"""None: no tool is called."""


def chat_prompt(chat: generation_pb2.Chat, *, add_special_tokens: bool) -> ChatPrompt:
    """Reads a conversation.

    Args:
        chat: What came.
        add_special_tokens: As `ChatPrompt` has it.

    Raises:
        InvalidArgumentError: A field is unknown, missing, out of range, or of another role.
    """
    refuse_unknown_fields(chat, _CHAT)
    if len(chat.messages) > MAX_CHAT_MESSAGES:  # before they are looked at one by one
        raise too_many_messages(len(chat.messages))
    num_calls = sum(len(message.tool_calls) for message in chat.messages)
    if num_calls > MAX_CHAT_CALLS:
        raise InvalidArgumentError(
            f"{_CHAT}.messages has {num_calls} tool_calls, at most {MAX_CHAT_CALLS} are taken",
            field=f"{_CHAT}.messages",
        )
    return ChatPrompt(
        messages=tuple(
            _chat_message(message, f"{_CHAT}.messages[{index}]")
            for index, message in enumerate(chat.messages)
        ),
        add_generation_prompt=chat.add_generation_prompt
        if chat.HasField("add_generation_prompt")
        else not chat.continue_final_message,
        continue_final_message=chat.continue_final_message,
        add_special_tokens=add_special_tokens,
        tools=_shown_tools(chat),
        template_arguments=_template_arguments(chat),
    )


def chat_tools(chat: generation_pb2.Chat, tools: tuple[Tool, ...]) -> ToolUse | None:
    """Reads which tools may or must be called; None: none.

    Args:
        chat: What came.
        tools: Tools that the model is shown, as `chat_prompt` read them.

    Raises:
        InvalidArgumentError: One is to be called, and there is none, or not that one; or they are
            too many, too long, or two have one name.
    """
    choice = chat.tool_choice
    several = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    match choice.WhichOneof("choice"):
        case "name":
            return tool_use(tools, only=choice.name)
        case "allowed":
            refuse_unknown_fields(choice.allowed, f"{_CHOICE}.allowed")
            mode = _mode(choice.allowed.mode, f"{_CHOICE}.allowed.mode")
            if mode is None:
                raise InvalidArgumentError(
                    f"{_CHOICE}.allowed.mode is TOOL_MODE_NONE, must be TOOL_MODE_AUTO or"
                    " TOOL_MODE_REQUIRED",
                    field=f"{_CHOICE}.allowed.mode",
                )
            allowed = frozenset(choice.allowed.names)
            return tool_use(tools, mode=mode, allowed=allowed, allows_several=several)
        case _:
            mode = _mode(choice.mode, f"{_CHOICE}.mode")
            return None if mode is None else tool_use(tools, mode=mode, allows_several=several)


def _shown_tools(chat: generation_pb2.Chat) -> tuple[Tool, ...]:
    """Tools that the model is shown: none where none may be called."""
    if len(chat.tools) > MAX_TOOLS:
        raise InvalidArgumentError(
            f"{_TOOLS} has {len(chat.tools)} tools, at most {MAX_TOOLS} are taken", field=_TOOLS
        )
    refuse_unknown_fields(chat.tool_choice, _CHOICE)
    tools = tuple(_tool(tool, f"{_TOOLS}[{index}]") for index, tool in enumerate(chat.tools))
    is_mode = chat.tool_choice.WhichOneof("choice") == "mode"
    if is_mode and _mode(chat.tool_choice.mode, f"{_CHOICE}.mode") is None:
        return ()
    return tools


def _tool(tool: generation_pb2.Tool, field: str) -> Tool:
    refuse_unknown_fields(tool, field)
    return Tool(
        name=tool.name,
        description=tool.description if tool.HasField("description") else None,
        parameters=tool.parameters if tool.HasField("parameters") else None,
        is_strict=tool.strict,
    )


def _mode(mode: int, field: str) -> ToolMode | None:
    if mode not in _MODES:
        raise InvalidArgumentError(f"{field} is {mode}, which is no value of ToolMode", field=field)
    return _MODES[mode]


def _chat_message(message: generation_pb2.ChatMessage, field: str) -> ChatMessage:
    refuse_unknown_fields(message, field)
    role = "system" if message.role == DEVELOPER_ROLE else message.role
    for name, is_set, owner in (
        ("tool_calls", len(message.tool_calls) > 0, "assistant"),
        ("reasoning", message.HasField("reasoning"), "assistant"),
        ("tool_call_id", message.HasField("tool_call_id"), "tool"),
    ):
        if is_set and role != owner:
            raise InvalidArgumentError(
                f"{field}.{name} is set, but the role of the message is {role[:32]!r}, not"
                f" {owner!r}",
                field=f"{field}.{name}",
            )
    if len(message.tool_calls) > MAX_TOOL_CALLS:
        raise InvalidArgumentError(
            f"{field}.tool_calls has {len(message.tool_calls)} calls, at most {MAX_TOOL_CALLS} are"
            " taken",
            field=f"{field}.tool_calls",
        )
    return ChatMessage(
        role=role,
        content=message.content,
        name=message.name if message.HasField("name") else None,
        tool_calls=tuple(
            _tool_call(call, f"{field}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id if message.HasField("tool_call_id") else None,
        reasoning=message.reasoning if message.HasField("reasoning") else None,
    )


def _tool_call(call: generation_pb2.ToolCall, field: str) -> ToolCall:
    refuse_unknown_fields(call, field)
    return ToolCall(call_id=call.id, name=call.name, arguments=call.arguments)


def _template_arguments(chat: generation_pb2.Chat) -> str:
    """What the chat template is given by name, as JSON."""
    if len(chat.reasoning_effort) > MAX_EFFORT_CHARS:
        raise InvalidArgumentError(
            f"{_CHAT}.reasoning_effort has {len(chat.reasoning_effort)} characters, at most"
            f" {MAX_EFFORT_CHARS} are taken",
            field=f"{_CHAT}.reasoning_effort",
        )
    arguments = thinking_arguments(
        thinks=chat.enable_thinking if chat.HasField("enable_thinking") else None,
        effort=chat.reasoning_effort if chat.HasField("reasoning_effort") else None,
    )
    if not chat.HasField("template_arguments"):
        return json.dumps(arguments, ensure_ascii=False)
    text = chat.template_arguments
    if len(text) > MAX_TEMPLATE_CHARS:
        raise InvalidArgumentError(
            f"{_ARGUMENTS} has {len(text)} characters, at most {MAX_TEMPLATE_CHARS} are taken",
            field=_ARGUMENTS,
        )
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise InvalidArgumentError(f"{_ARGUMENTS} is JSON, but no object", field=_ARGUMENTS)
        return json.dumps({**arguments, **given}, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{_ARGUMENTS} is not JSON: {error}", field=_ARGUMENTS
        ) from error
