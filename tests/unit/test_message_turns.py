"""What becomes of the messages of `/v1/messages`."""

from typing import Any

from coordinator.doors.http.message_turns import turns_of
from coordinator.doors.http.schema.anthropic import MessagesRequest


def turns(*messages: dict[str, Any], **fields: Any) -> list[tuple[str, str, str]]:
    """Role, content and place of each turn."""
    request = MessagesRequest.model_validate({"messages": list(messages), **fields})
    return [(one.message.role, one.message.content, one.place) for one in turns_of(request)]


def said(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def test_the_system_speaks_first() -> None:
    blocks = [{"type": "text", "text": text} for text in ("a", "b")]
    assert turns(said("user", "c"), system=blocks) == [
        ("system", "a\n\nb", "system"),
        ("user", "c", "messages[0].content"),
    ]
    assert turns(said("system", "a"), said("user", "c"), system="s") == [
        ("system", "s\n\na", "system"),
        ("user", "c", "messages[1].content"),
    ]


def test_what_the_system_says_later_stands_in_a_turn_of_the_user() -> None:
    assert turns(said("user", "a"), said("system", "b"), said("assistant", "c")) == [
        ("user", "a\n\nb", "messages[0].content"),
        ("assistant", "c", "messages[2].content"),
    ]
    assert turns(said("user", "a"), said("assistant", "b"), said("system", "c")) == [
        ("user", "a", "messages[0].content"),
        ("assistant", "b", "messages[1].content"),
        ("user", "c", "messages[2].content"),
    ]


def test_turns_of_one_role_are_one_turn() -> None:
    assert turns(said("user", "a"), said("user", "b", "c"), said("assistant", "d", "e")) == [
        ("user", "a\n\nb\n\nc", "messages[0].content"),
        ("assistant", "de", "messages[2].content"),
    ]


def test_a_turn_without_anything_is_a_turn() -> None:
    assert turns({"role": "user", "content": []}, {"role": "assistant", "content": ""}) == [
        ("user", "", "messages[0].content"),
        ("assistant", "", "messages[1].content"),
    ]


def test_results_stand_where_they_stood_and_name_their_tools() -> None:
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {"a": 1}}
    parts = [{"type": "text", "text": text} for text in ("x", "y")]
    request = MessagesRequest.model_validate(
        {
            "messages": [
                said("user", "a"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "redacted_thinking", "data": "zzz"},
                        call,
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "before"},
                        {"type": "tool_result", "tool_use_id": "1", "content": parts},
                        {"type": "tool_result", "tool_use_id": "2"},
                        {"type": "text", "text": "after"},
                    ],
                },
            ]
        }
    )
    _, asking, before, found, nothing, after = turns_of(request)
    assert asking.message.reasoning == "hm"
    assert [(one.call_id, one.name) for one in asking.message.tool_calls] == [("1", "look")]
    assert (before.message.content, after.message.content) == ("before", "after")
    assert (found.message.role, found.message.content) == ("tool", "x\n\ny")
    assert (found.message.name, found.message.tool_call_id) == ("look", "1")
    assert found.place == "messages[2].content[1]"
    assert (nothing.message.content, nothing.message.name) == ("", None)
