"""Conversations as clients write them reach templates that refuse their order or their ids."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import Tool, ToolCall
from coordinator.text.call_ids import nine_characters
from coordinator.text.chat_template import ChatTemplate
from stagecoach.contract.errors import InvalidArgumentError

TEMPLATES = Path(__file__).parents[1] / "recorded_calls" / "templates"
NEMO = "mistralai-Mistral-Nemo-Instruct-2407"
SMALL = "Mistral-Small-3.2-24B-Instruct-2506"
MINISTRAL = "mistralai-Ministral-3-14B-Reasoning-2512"
GEMMA = "google-gemma-2-2b-it"
GPT_OSS = "openai-gpt-oss-120b"
ALL = (NEMO, SMALL, MINISTRAL, GEMMA)
ADD = Tool(name="add", description="Adds.", parameters='{"type": "object"}')
FOREIGN = "call_0123456789abcdefABCDEFGH"

ALTERNATING = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if m.role != 'tool' and (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def template(name: str) -> ChatTemplate:
    source = (TEMPLATES / f"{name}.jinja").read_text()
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def said(role: str, content: str) -> ChatMessage:
    return ChatMessage(role=role, content=content)


def called(call_id: str) -> list[ChatMessage]:
    call = ToolCall(call_id=call_id, name="add", arguments='{"a": 1}')
    return [
        ChatMessage(role="assistant", tool_calls=(call,)),
        ChatMessage(role="tool", content="Three.", tool_call_id=call_id, name="add"),
    ]


def check_order(text: str, *parts: str) -> None:
    """All parts are there, once each and in this order."""
    places = [text.index(part) for part in parts]
    assert all(first < second for first, second in pairwise(places)), text
    assert [text.count(part) for part in parts] == [1] * len(parts)


@pytest.mark.parametrize("name", [NEMO, SMALL])
def test_ids_of_another_client_have_nine_characters_for_mistral(name: str) -> None:
    history = [said("user", "Add."), *called(FOREIGN), *called("abc123DEF")]
    text = template(name).render(history, tools=[ADD])
    ours = nine_characters(FOREIGN)
    assert re.fullmatch("[0-9A-Za-z]{9}", ours)
    assert FOREIGN not in text
    # Once with the call and once with its result.
    assert text.count(ours) == text.count("abc123DEF") == 2


def test_an_id_always_becomes_the_same_one_and_others_become_others() -> None:
    ids = ["", "1", "call_1", "call_2", "t\u00e4tigkeit", "abcdefghi\u0661", FOREIGN]
    assert len({*map(nine_characters, ids)}) == len(ids)
    assert [*map(nine_characters, ids)] == [*map(nine_characters, ids)]
    assert nine_characters("abc123DEF") == "abc123DEF"


@pytest.mark.parametrize("name", ALL)
def test_two_turns_of_the_user_in_a_row_are_one(name: str) -> None:
    text = template(name).render([said("user", "First."), said("user", "Second.")])
    assert "First.\n\nSecond." in text


@pytest.mark.parametrize("name", ALL)
def test_what_codex_says_first_is_taken(name: str) -> None:
    history = [said("system", "Rules."), said("user", "Folder."), said("user", "Task.")]
    check_order(template(name).render([*history], tools=[ADD]), "Rules.", "Folder.", "Task.")


@pytest.mark.parametrize("name", ALL)
def test_a_turn_of_the_user_behind_a_result_is_taken(name: str) -> None:
    history = [said("user", "Add."), *called(FOREIGN), said("user", "Thanks.")]
    check_order(template(name).render(history, tools=[ADD]), "Add.", "Three.", "Thanks.")


@pytest.mark.parametrize("name", ALL)
def test_what_the_system_says_later_is_said_by_the_user(name: str) -> None:
    history = [said("user", "Hi."), said("assistant", "Yes?"), said("system", "Rules.")]
    text = template(name).render([*history, said("user", "Task.")])
    check_order(text, "Hi.", "Yes?", "Rules.\n\nTask.")


@pytest.mark.parametrize("name", ALL)
def test_an_assistant_may_speak_first(name: str) -> None:
    history = [said("system", "Rules."), said("assistant", "Hello!"), said("user", "Hi.")]
    text = template(name).render(history)
    check_order(text, "Hello!", "Hi.")
    assert text.count("Rules.") == 1


def test_what_is_said_beside_a_call_and_thinking_is_thought_for_gpt_oss() -> None:
    asked, result = called("c1")
    asked = replace(asked, content="I look it up.", reasoning="They want a sum.")
    text = template(GPT_OSS).render([said("user", "Add."), asked, result], tools=[ADD])
    thought = "<|channel|>analysis<|message|>They want a sum.\n\nI look it up.<|end|>"
    check_order(text, "Add.", thought, "to=functions.add<|channel|>commentary", "Three.")


def test_a_tool_without_a_description_is_shown_to_gpt_oss() -> None:
    text = template(GPT_OSS).render([said("user", "Add.")], tools=[Tool(name="add")])
    assert "type add = () => any;" in text


def test_what_a_template_takes_is_left_as_it_is() -> None:
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    history = [said("user", "A"), said("user", "B"), said("system", "C")]
    assert ChatTemplate(turns, {}).render(history) == "<user>A<user>B<system>C"


def test_no_more_is_changed_than_a_template_asks_for() -> None:
    history = [said("system", "S"), said("user", "A"), said("user", "B")]
    assert ChatTemplate(ALTERNATING, {}).render(history) == "<user>S\n\nA\n\nB"


def test_what_no_order_mends_is_refused_in_the_words_of_the_template() -> None:
    refuses = "{{ raise_exception('on ' ~ messages | length) }}"
    with pytest.raises(InvalidArgumentError, match="refuses them: on 2"):
        ChatTemplate(refuses, {}).render([said("user", "A"), said("user", "B")])


def test_a_tool_whose_schema_has_no_properties_gets_none_for_the_template() -> None:
    goes_through = (
        '{#- "name" <tool_call> -#}{% for tool in tools %}'
        "{% for name in tool.function.parameters.properties.keys() %}{{ name }}{% endfor %}"
        "{{ tool.function.name }}{% endfor %}"
    )
    assert ChatTemplate(goes_through, {}).render([said("user", "A")], tools=[ADD]) == "add"
