"""From the messages of `/api/chat` to turns of a conversation as the engine takes them.

Calls and results need no ids there; they are given some, as many chat templates ask for them.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import ToolCall
from coordinator.doors.http.placed_turn import PlacedTurn
from coordinator.doors.http.schema.ollama import OllamaChatRequest, OllamaMessage


class _OpenCall(NamedTuple):
    """A call without a result."""

    call_id: str
    name: str


class _Answered(NamedTuple):
    """The call that a message is the result of, as far as it is known."""

    call_id: str | None
    name: str | None


_NO_CALL = _Answered(None, None)


def ollama_turns(request: OllamaChatRequest) -> Sequence[PlacedTurn]:
    """The turns of a conversation.

    Args:
        request: Validated.
    """
    messages: Sequence[OllamaMessage | PlacedTurn] = request.messages or ()
    turns = [one for one in messages if isinstance(one, PlacedTurn)]
    if turns:  # of a large body
        return turns
    open_calls: list[_OpenCall] = []
    num_calls = 0
    for index, message in enumerate(request.messages or ()):
        calls = []
        if message.role == "assistant":
            for one in message.tool_calls or ():
                num_calls += 1
                # Nine letters and digits are what all templates take.
                call_id = one.id or f"call{num_calls:05}"
                open_calls.append(_OpenCall(call_id, one.function.name))
                arguments = json.dumps(one.function.arguments or {}, ensure_ascii=False)
                calls.append(ToolCall(call_id=call_id, name=one.function.name, arguments=arguments))
        answered = _answered(message, open_calls) if message.role == "tool" else _NO_CALL
        turn = ChatMessage(
            role=message.role,
            content=message.content or "",
            name=answered.name,
            tool_calls=tuple(calls),
            tool_call_id=answered.call_id,
            reasoning=(message.thinking or None) if message.role == "assistant" else None,
        )
        turns.append(PlacedTurn(turn, f"messages[{index}]"))
    return turns


def _answered(message: OllamaMessage, open_calls: list[_OpenCall]) -> _Answered:
    """The call that a message is the result of, which is open no more; else what it says of one."""
    if message.tool_call_id:
        fitting = [one for one in open_calls if one.call_id == message.tool_call_id]
    else:
        fitting = [one for one in open_calls if message.tool_name in (None, "", one.name)]
    if not fitting:
        return _Answered(message.tool_call_id or None, message.tool_name or None)
    open_calls.remove(fitting[0])
    return _Answered(*fitting[0])
