"""Conversations with tools reach every kind of chat template, whatever it takes."""

import json
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import Tool, ToolCall
from coordinator.dialogue.formats.deepseek import DEEPSEEK_V3
from coordinator.text import chat_template
from coordinator.text.chat_template import ChatTemplate
from coordinator.text.tool_turns import found_call_turns
from stagecoach.contract.errors import InvalidArgumentError

TOOL = Tool(name="add", description="Adds.", parameters='{"type": "object"}')
CALL = ToolCall(call_id="abcdefgh1", name="add", arguments='{"a": 1, "b": "x"}')
OTHER = ToolCall(call_id="abcdefgh2", name="sub", arguments="{}")
QUESTION = ChatMessage(role="user", content="Add.")
ASKED = ChatMessage(role="assistant", tool_calls=(CALL,))
RESULT = ChatMessage(role="tool", content="3", tool_call_id="abcdefgh1")
HISTORY = [QUESTION, ASKED, RESULT]

_CALLS = "{%- for call in message.tool_calls %}<tool_call>{{ FORM }}</tool_call>{% endfor %}"
_TURNS = (
    '{#- "name" -#}{% if tools %}[{{ tools | tojson }}]{% endif %}'
    "{% for message in messages %}<{{ message.role }}>{% if message.tool_calls %}CALLS"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def template(form: str, turns: str = _TURNS) -> ChatTemplate:
    return ChatTemplate(turns.replace("CALLS", _CALLS.replace("FORM", form)), {})


@pytest.mark.parametrize(
    "form",
    [
        "call.function.name ~ (call.function.arguments | tojson)",
        "call.function.name + call.function.arguments",
        "call.function.name ~ (call.function.arguments.items() | list)",
    ],
    ids=["an object as JSON", "a text", "items"],
)
def test_arguments_are_an_object_or_a_text_as_the_template_takes_them(form: str) -> None:
    text = template(form).render(HISTORY, tools=[TOOL])
    assert text.startswith('[[{"type": "function", "function": {"name": "add", ')
    assert "<user>Add.<assistant><tool_call>add" in text
    assert text.endswith("</tool_call><tool>3<assistant>") or text.endswith("</tool_call><tool>3")


def test_a_template_that_wants_no_content_beside_calls_gets_none() -> None:
    turns = _TURNS.replace("message.tool_calls %}", "message.content is none %}")
    text = template("call.function.name", turns).render(HISTORY, tools=[TOOL])
    assert text.endswith("<user>Add.<assistant><tool_call>add</tool_call><tool>3")


def test_calls_and_results_that_a_template_leaves_out_are_written_for_it() -> None:
    turns = (
        '{#- "name" <tool_call> -#}{% if tools %}{% endif %}{% for message in messages %}'
        "{% if message.role not in ('user', 'assistant') %}{{ raise_exception('no') }}{% endif %}"
        "<{{ message.role }}>{{ message.content }}{% endfor %}"
    )
    again = ChatMessage(role="tool", content="4", tool_call_id="abcdefgh2")
    text = ChatTemplate(turns, {}).render([*HISTORY, again], tools=[TOOL])
    assert text == (
        "<user>Add.<assistant><tool_call>\n"
        '{"name": "add", "arguments": {"a": 1, "b": "x"}}\n</tool_call>'
        "<user><tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    )


@pytest.mark.parametrize("knows_system", [True, False])
def test_a_model_whose_template_knows_no_tools_is_told_of_them(knows_system: bool) -> None:
    refuses = "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    turns = (
        "{% for message in messages %}"
        f"{'' if knows_system else refuses}"
        "<{{ message.role }}>{{ message.content }}{% endfor %}"
    )
    text = ChatTemplate(turns, {}).render([QUESTION], tools=[TOOL])
    assert text.startswith("<system>You can call" if knows_system else "<user>You can call")
    assert '{"type": "function", "function": {"name": "add", "description": "Adds."' in text
    assert (
        '<tool_call>\n{"name": "NAME", "arguments": {"PARAMETER": "VALUE"}}\n</tool_call>' in text
    )
    assert text.endswith("<user>Add." if knows_system else "\n\nAdd.")


def test_a_model_whose_template_shows_no_tools_is_told_of_them_in_its_own_format() -> None:
    turns = (
        f"{{#- {' '.join(DEEPSEEK_V3.signs)} -#}}"
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    )
    text = ChatTemplate(turns, {}).render([QUESTION], tools=[TOOL])
    assert '{"type": "function", "function": {"name": "add", "description": "Adds."' in text
    example = f'NAME{DEEPSEEK_V3.name_end}{{"PARAMETER": "VALUE"}}'
    assert f":\n{DEEPSEEK_V3.begin}{example}{DEEPSEEK_V3.end}\n" in text
    assert text.endswith("<user>Add.")


def test_what_the_system_says_stays_before_what_it_is_told_of_tools() -> None:
    turns = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    system = ChatMessage(role="system", content="Be brief.")
    text = ChatTemplate(turns, {}).render([system, QUESTION], tools=[TOOL])
    assert text.startswith("<system>Be brief.\n\nYou can call")


def test_a_format_of_one_call_gets_one_a_turn_each_before_its_result() -> None:
    turns = (
        '<|start_header_id|>{#- ipython "parameters": -#}{% if tools %}{% endif %}'
        "{% for message in messages %}"
        "<{{ message.role }}>{% if message.tool_calls %}"
        "{% if message.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
        "{{ message.tool_calls[0].function.name }}{% else %}{{ message.content }}{% endif %}"
        "{% endfor %}"
    )
    asked = ChatMessage(role="assistant", tool_calls=(CALL, OTHER))
    answers = [
        ChatMessage(role="tool", content=one, tool_call_id=call.call_id)
        for one, call in (("3", CALL), ("4", OTHER))
    ]
    text = ChatTemplate(turns, {}).render([QUESTION, asked, *answers], tools=[TOOL])
    assert text.endswith("<user>Add.<assistant>add<tool>3<assistant>sub<tool>4")


def test_what_a_template_refuses_is_an_error_that_names_messages() -> None:
    turns = "{{ raise_exception('never') }}"
    with pytest.raises(InvalidArgumentError, match="never") as caught:
        ChatTemplate(turns, {}).render(HISTORY, tools=[TOOL])
    assert caught.value.field == "prompt.chat.messages"


def test_a_template_gets_what_it_is_given_by_name_but_not_its_own_names() -> None:
    turns = "{{ mood }} {{ messages | length }} {{ add_generation_prompt }}"
    given: dict[str, Any] = {"mood": "good", "messages": [], "add_generation_prompt": "x"}
    given = json.loads(json.dumps(given))
    assert ChatTemplate(turns, {}).render([QUESTION], arguments=given) == "good 1 True"


def test_what_a_template_takes_is_found_once_and_by_no_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Mock(wraps=found_call_turns)
    monkeypatch.setattr(chat_template, "found_call_turns", found)
    refuses_some = (
        "{% for tool in tools if tool.function.name == 'odd' %}{{ raise_exception('odd') }}"
        "{% endfor %}"
    )
    chats = template("call.function.name + call.function.arguments", refuses_some + _TURNS)
    with pytest.raises(InvalidArgumentError, match="odd"):
        chats.render(HISTORY, tools=[replace(TOOL, name="odd")])
    assert '<tool_call>add{"a": 1, "b": "x"}</tool_call>' in chats.render(HISTORY, tools=[TOOL])
    assert found.call_count == 1
