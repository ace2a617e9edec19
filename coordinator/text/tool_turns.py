"""Conversations with tools as a chat template takes them.

Templates differ in what they take: arguments as an object or as text, no content or an empty one
beside calls, one call in a message or several, ids of any form or of nine letters and digits. Some
show the calls of a history not at all, and many know no tools. What a template takes is found by
trying it; what it leaves out is written for it, as the model itself would write it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import Tool, ToolCall
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.instructions import instructions, result_text
from coordinator.dialogue.written_calls import written_calls
from coordinator.text.call_ids import nine_character_ids
from coordinator.text.control_tokens import unguessable_tag
from coordinator.text.taken_turns import THOUGHTS, Render, Turn, in_order_taken
from stagecoach.contract.errors import InvalidArgumentError

_TOOL = Tool(name="add", description="Adds.", parameters='{"type": "object"}')
_QUESTION = {"role": "user", "content": "0"}
"""What is shown, and said, before the calls by which it is found what a template takes."""


class CallTurns(NamedTuple):
    """How a template takes a turn that calls tools."""

    shows_calls: bool
    """Whether it shows the calls; else they are written into the content."""
    shows_results: bool
    """Whether it shows turns of the role `tool`; else they are turns of the user."""
    empty_content: str | None = ""
    """What stands for no content beside calls."""
    are_arguments_text: bool = False
    """Whether arguments are text rather than an object."""
    takes_any_ids: bool = True
    """Whether ids may be of any length; else they have nine letters or digits."""


class ToolTurns:
    """Makes turns for one template.

    Args:
        dialect: How the model writes calls.
        render: Renders turns with the template.
        call_turns: Says how the template takes turns that call tools, with tools shown or none;
            see `found_call_turns`.
        shows_tools: Whether the template shows tools; else the system message does.
    """

    def __init__(
        self,
        dialect: Dialect,
        render: Render,
        call_turns: Callable[[bool], CallTurns],
        *,
        shows_tools: bool,
    ) -> None:
        self._dialect = dialect
        self._shows_tools = shows_tools
        self._render = in_order_taken(render)
        self._call_turns = call_turns

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        """Renders a conversation.

        Raises:
            InvalidArgumentError: The template refuses it.
        """
        described = [_described(tool) for tool in tools]
        if not self._has_calls(messages):
            turns: Sequence[Turn] = [plain_turn(message) for message in messages]
        else:
            turns = self._turns(messages, self._call_turns(len(tools) > 0))
        if self._shows_tools or not tools:
            return self._render(turns, described or None)
        told = instructions(described, self._dialect.calls)
        return self._render(_told_by_system(turns, told), None)

    @staticmethod
    def _has_calls(messages: Sequence[ChatMessage]) -> bool:
        return any(message.tool_calls or message.role == "tool" for message in messages)

    def _turns(self, messages: Sequence[ChatMessage], form: CallTurns) -> Sequence[Turn]:
        if not form.takes_any_ids:
            messages = nine_character_ids(messages)
        if form.shows_calls and self._dialect.calls.next is None:
            messages = _one_call_each(messages)
        turns: list[dict[str, object]] = []
        for message in messages:
            if message.role == "tool" and not form.shows_results:
                text = result_text(message.content)
                if turns and turns[-1]["role"] == "user":  # turns alternate
                    turns[-1]["content"] = f"{turns[-1]['content']}\n{text}"
                else:
                    turns.append({"role": "user", "content": text})
            elif not message.tool_calls:
                turns.append(plain_turn(message))
            elif form.shows_calls:
                turns.append(_call_turn(message, form))
            else:
                calls = written_calls(message.tool_calls, self._dialect.calls, {})
                content = f"{message.content}\n{calls}" if message.content else calls
                turns.append({**plain_turn(message), "content": content})
        return turns


def found_call_turns(dialect: Dialect, render: Render, *, has_tools: bool) -> CallTurns:
    """Tries what a template takes; a client has no part in it, so that it holds for all.

    Args:
        dialect: How the model writes calls.
        render: Renders turns with the template, as if nobody asked for more.
        has_tools: Whether tools are shown.
    """
    if not dialect.knows_tools:
        return CallTurns(shows_calls=False, shows_results=False)
    render = in_order_taken(render)
    tools = [_described(_TOOL)] if has_tools else None
    for as_text in (False, True):
        for empty_content in ("", None):
            for any_ids in (True, False):
                form = CallTurns(True, True, empty_content, as_text, any_ids)
                shown = _shows_results(form, render, tools)
                if shown is not None:
                    return form._replace(shows_results=shown)
    result = unguessable_tag()
    answer = ChatMessage(role="tool", content=result, name=result, tool_call_id=result[:9])
    with suppress(InvalidArgumentError):
        asked = plain_turn(ChatMessage(role="assistant", content="0"))
        text = render([_QUESTION, asked, plain_turn(answer)], tools)
        return CallTurns(shows_calls=False, shows_results=result in text)
    return CallTurns(shows_calls=False, shows_results=False)


def _shows_results(
    form: CallTurns, render: Render, tools: Sequence[Mapping[str, object]] | None
) -> bool | None:
    """Whether a result is shown with calls in a form; None where no call is."""
    name, result = unguessable_tag(), unguessable_tag()
    call = ToolCall(
        call_id=result if form.takes_any_ids else result[:9], name=name, arguments='{"a": 1}'
    )
    answer = ChatMessage(role="tool", content=result, name=name, tool_call_id=call.call_id)
    asked = _call_turn(ChatMessage(role="assistant", tool_calls=(call,)), form)
    with suppress(InvalidArgumentError):
        text = render([_QUESTION, asked, plain_turn(answer)], tools)
        if name in text:
            return result in text
    return None


def plain_turn(message: ChatMessage) -> dict[str, object]:
    """What a template sees of a message without calls; a name only where there is one."""
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        turn |= dict.fromkeys(THOUGHTS, message.reasoning)
    return turn


def _call_turn(message: ChatMessage, form: CallTurns) -> dict[str, object]:
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments if form.are_arguments_text else _arguments(call),
            },
        }
        for call in message.tool_calls
    ]
    content = message.content or form.empty_content
    return {**plain_turn(message), "content": content, "tool_calls": calls}


def _arguments(call: ToolCall) -> object:
    return json.loads(call.arguments)


def _described(tool: Tool) -> Mapping[str, object]:
    """A tool as OpenAI writes it, which templates are made for; some want a description of each."""
    function: dict[str, object] = {"name": tool.name, "description": tool.description or ""}
    parameters = json.loads(tool.parameters or "{}")
    if isinstance(parameters, dict):
        parameters = {"type": "object", "properties": {}, **parameters}
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def _one_call_each(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The same conversation with one call a message, each before its result."""
    results = {one.tool_call_id: one for one in messages if one.role == "tool"}
    spread: list[ChatMessage] = []
    moved: set[str | None] = set()
    for message in messages:
        if message.role == "tool" and message.tool_call_id in moved:
            continue
        if len(message.tool_calls) < 2:
            spread.append(message)
            continue
        for index, call in enumerate(message.tool_calls):
            content = "" if index else message.content
            spread.append(replace(message, content=content, tool_calls=(call,)))
            if call.call_id in results:
                spread.append(results[call.call_id])
                moved.add(call.call_id)
    return spread


def _told_by_system(turns: Sequence[Turn], told: str) -> list[Turn]:
    first, *others = turns
    if first["role"] != "system":
        return [{"role": "system", "content": told}, *turns]
    return [{**first, "content": f"{first['content']}\n\n{told}"}, *others]
