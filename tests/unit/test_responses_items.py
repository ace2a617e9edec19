"""What the model is told by the items of a conversation, and how each is listed again."""

import json
from typing import Any

import pytest

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import ToolCall
from coordinator.doors.http.responses_items import (
    conversation,
    conversation_turns,
    from_facts,
    given_items,
    to_facts,
)
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.validation import validate

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
DEVELOPER = {
    "type": "message",
    "role": "developer",
    "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "brief."}],
}
THOUGHT: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None}
REASONING = {**THOUGHT, "content": [{"type": "reasoning_text", "text": "Hm."}]}
ANSWER = {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'}
SPACED_CALL = {**CALL, "call_id": "c2", "namespace": "near"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def read(*items: dict[str, Any]) -> ResponsesRequest:
    return validate(json.dumps({"input": items}).encode(), ResponsesRequest)


def told(*items: dict[str, Any], instructions: str | None = None) -> tuple[ChatMessage, ...]:
    messages = (one.message for one in given_items(read(*items).input))
    turns = conversation_turns(instructions, [one for one in messages if one is not None])
    return conversation(turns)


def assistant(content: str = "", *calls: ToolCall, reasoning: str | None = None) -> ChatMessage:
    return ChatMessage(role="assistant", content=content, tool_calls=calls, reasoning=reasoning)


CALLED = ToolCall(call_id="c1", name="f", arguments='{"a":1}')
CALLED_NEAR = ToolCall(call_id="c2", name="near.f", arguments='{"a":1}')


def test_a_string_is_what_the_user_says() -> None:
    [item] = given_items("Hi")
    assert item.message == ChatMessage(role="user", content="Hi")


def test_thinking_content_and_calls_are_one_message_of_the_assistant() -> None:
    assert told(USER, REASONING, ANSWER, CALL, SPACED_CALL, RESULT, ANSWER) == (
        ChatMessage(role="user", content="Hi"),
        assistant("Well.", CALLED, CALLED_NEAR, reasoning="Hm."),
        ChatMessage(role="tool", content="42", tool_call_id="c1"),
        assistant("Well."),
    )


def test_what_begins_anew_is_another_message() -> None:
    assert told(ANSWER, ANSWER, CALL, ANSWER, REASONING, CALL) == (
        assistant("Well."),
        assistant("Well.", CALLED),
        assistant("Well."),
        assistant("", CALLED, reasoning="Hm."),
    )


def test_instructions_and_what_the_system_says_after_them_are_one_message() -> None:
    assert told(SYSTEM, DEVELOPER, USER, DEVELOPER, instructions="Obey.") == (
        ChatMessage(role="system", content="Obey.\n\nBe kind.\n\nBe brief."),
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="system", content="Be brief."),
    )


def test_thinking_that_is_not_shown_is_not_told() -> None:
    hidden = {**THOUGHT, "encrypted_content": "gAAA"}
    short = {**THOUGHT, "summary": [{"type": "summary_text", "text": "Sum."}]}
    assert told(hidden, CALL) == (assistant("", CALLED),)
    assert told(short, CALL) == (assistant("", CALLED, reasoning="Sum."),)


def test_arguments_of_a_call_that_was_cut_are_told_as_text() -> None:
    [message] = told({**CALL, "arguments": '{"a":', "status": "incomplete"})
    [call] = message.tool_calls
    assert json.loads(call.arguments) == {"arguments": '{"a":'}


def test_a_refusal_is_what_was_said() -> None:
    parts = [{"type": "refusal", "refusal": "No."}]
    assert told({"role": "assistant", "content": parts}) == (assistant("No."),)


def test_items_are_listed_in_the_form_of_an_answer() -> None:
    listed = [
        json.loads(one.text) for one in given_items(read(USER, ANSWER, REASONING, RESULT).input)
    ]
    assert listed == [
        {
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": "Hi"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Well.", "annotations": []}],
        },
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "c1", "output": "42", "status": "completed"},
    ]


@pytest.mark.parametrize(
    "item", [USER, DEVELOPER, REASONING, THOUGHT, ANSWER, CALL, SPACED_CALL, RESULT]
)
def test_an_item_survives_the_way_to_another_process(item: dict[str, Any]) -> None:
    [given] = given_items(read(item).input)
    assert from_facts(json.loads(json.dumps(to_facts(given)))) == given


def test_a_reference_survives_it_too() -> None:
    [given] = given_items(read({"type": "item_reference", "id": "msg_1"}).input)
    assert (given.message, given.reference) == (None, "msg_1")
    assert from_facts(json.loads(json.dumps(to_facts(given)))) == given
    assert given_items(read({"id": "msg_1"}).input) == [given]
