"""From the messages of `/v1/messages` to turns of a conversation as the engine takes them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import ToolCall
from coordinator.doors.http.placed_turn import PlacedTurn
from coordinator.doors.http.schema.anthropic import MessagesPrompt
from coordinator.doors.http.schema.anthropic_blocks import (
    Block,
    InputMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from stagecoach.contract.errors import InvalidArgumentError

_BETWEEN = "\n\n"
"""Stands between texts that came apart."""
_ROLES: Mapping[str, str] = MappingProxyType(
    {
        "thinking": "assistant",
        "redacted_thinking": "assistant",
        "tool_use": "assistant",
        "tool_result": "user",
    }
)
"""The one role that has blocks of a type; all have texts."""
_COMBINED = ("system", "user", "assistant")
"""Roles whose turns are one turn where they follow each other."""


def turns_of(request: MessagesPrompt) -> Sequence[PlacedTurn]:
    """The turns of a conversation, its system message first.

    Many chat templates refuse a system message elsewhere, or leave it out without a word: it is
    told in a turn of the user.

    Args:
        request: Validated.

    Raises:
        InvalidArgumentError: A block stands in a message of a role that has none of its type.
    """
    messages: Sequence[InputMessage | PlacedTurn] = request.messages
    turns = [one for one in messages if isinstance(one, PlacedTurn)]
    if turns:  # of a large body
        return turns
    names: dict[str, str] = {}
    """Names of tools that were called, by the id of the call."""
    if request.system is not None and (text := _text(request.system)):
        turns.append(PlacedTurn(ChatMessage(role="system", content=text), "system"))
    for index, message in enumerate(request.messages):
        for turn in _turns(message, f"messages[{index}]", names):
            if turn.message.role == "system" and any(one.message.role != "system" for one in turns):
                turn = turn._replace(message=replace(turn.message, role="user"))
            if turns and _is_combined(turns[-1].message, turn.message):
                turns[-1] = _combined(turns[-1], turn)
            else:
                turns.append(turn)
    return turns


def _turns(message: InputMessage, place: str, names: dict[str, str]) -> Iterator[PlacedTurn]:
    content = message.content
    if isinstance(content, str):
        yield PlacedTurn(ChatMessage(role=message.role, content=content), f"{place}.content")
        return
    _check_blocks(message.role, content, f"{place}.content")
    if message.role == "assistant":
        said = _said(content)
        names.update((call.call_id, call.name) for call in said.tool_calls)
        yield PlacedTurn(said, f"{place}.content")
    else:
        yield from _heard(message.role, content, f"{place}.content", names)


def _check_blocks(role: str, blocks: Sequence[Block], place: str) -> None:
    """Refuses a block that a turn of another role has: it would say nothing here."""
    for index, block in enumerate(blocks):
        wanted = _ROLES.get(block.type, role)
        if wanted != role:
            field = f"{place}[{index}]"
            raise InvalidArgumentError(
                f"{field} is a block of the type {block.type}, which stands only in messages of the"
                f" role {wanted}, not of {role}",
                field=field,
            )


def _said(blocks: Sequence[Block]) -> ChatMessage:
    """A turn of the assistant."""
    calls = [
        ToolCall(call_id=one.id, name=one.name, arguments=json.dumps(one.input, ensure_ascii=False))
        for one in blocks
        if isinstance(one, ToolUseBlock)
    ]
    thoughts = [one.thinking for one in blocks if isinstance(one, ThinkingBlock)]
    return ChatMessage(
        role="assistant",
        content="".join(one.text for one in blocks if isinstance(one, TextBlock)),
        tool_calls=tuple(calls),
        reasoning="".join(thoughts) or None,
    )


def _heard(
    role: str, blocks: Sequence[Block], place: str, names: dict[str, str]
) -> Iterator[PlacedTurn]:
    """A turn of the user, and the results of calls before it."""
    texts: list[str] = []
    is_silent = True
    for index, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolResultBlock):
            if texts:
                yield PlacedTurn(ChatMessage(role=role, content=_BETWEEN.join(texts)), place)
                texts = []
            is_silent = False
            result = ChatMessage(
                role="tool",
                content=_text(block.content or ""),
                name=names.get(block.tool_use_id),
                tool_call_id=block.tool_use_id,
            )
            yield PlacedTurn(result, f"{place}[{index}]")
    if texts or is_silent:
        yield PlacedTurn(ChatMessage(role=role, content=_BETWEEN.join(texts)), place)


def _text(content: str | Iterable[TextBlock]) -> str:
    return content if isinstance(content, str) else _BETWEEN.join(one.text for one in content)


def _is_combined(first: ChatMessage, second: ChatMessage) -> bool:
    return first.role == second.role and first.role in _COMBINED


def _combined(first: PlacedTurn, second: PlacedTurn) -> PlacedTurn:
    one, other = first.message, second.message
    between = _BETWEEN if one.content and other.content else ""
    return first._replace(
        message=replace(
            one,
            content=one.content + between + other.content,
            tool_calls=one.tool_calls + other.tool_calls,
            reasoning="".join(filter(None, (one.reasoning, other.reasoning))) or None,
        )
    )
