"""What says nothing in the role where it stands is refused, or named: it is never dropped."""

from typing import Any

import pytest

from coordinator.doors.http.body_workers import MAX_INLINE_BYTES
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import http_client

LONG = "x" * (MAX_INLINE_BYTES + 1)
"""Of a body that is read in a process of its own."""
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "1"}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
FUNCTION_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OLLAMA_CALL = {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize("text", ["Hi", LONG], ids=["small", "large"])
@pytest.mark.parametrize(
    ("role", "block", "wanted"),
    [
        ("user", CALL, "assistant"),
        ("user", THOUGHT, "assistant"),
        ("user", {"type": "redacted_thinking", "data": "x"}, "assistant"),
        ("assistant", RESULT, "user"),
        ("system", RESULT, "user"),
        ("system", CALL, "assistant"),
    ],
)
async def test_a_block_of_another_role_is_refused(
    role: str, block: dict[str, Any], wanted: str, text: str
) -> None:
    content = [{"type": "text", "text": text}, block]
    asked = {"messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": content}]}
    async with http_client(EchoEngine(max_model_len=1 << 20)) as client:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = await client.post(path, json=asked)
            assert response.status_code == 400
            assert response.json()["error"]["message"] == (
                f"messages[1].content[1] is a block of the type {block['type']}, which stands only"
                f" in messages of the role {wanted}, not of {role}"
            )


@pytest.mark.parametrize(
    ("path", "message", "named"),
    [
        (
            "/v1/chat/completions",
            {"role": "user", "tool_calls": [FUNCTION_CALL], "tool_call_id": "c1"},
            ["messages[0].tool_calls", "messages[0].tool_call_id"],
        ),
        (
            "/v1/chat/completions",
            {"role": "system", "reasoning_content": "Hm.", "reasoning": "Hm."},
            ["messages[0].reasoning_content", "messages[0].reasoning"],
        ),
        (
            "/v1/chat/completions",
            {"role": "assistant", "reasoning_content": "Hm.", "reasoning": "Well."},
            ["messages[0].reasoning"],
        ),
        (
            "/v1/chat/completions",
            {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [FUNCTION_CALL]},
            [],
        ),
        (
            "/v1/chat/completions",
            {"role": "user", "tool_calls": [], "tool_call_id": None, "reasoning": ""},
            [],
        ),
        ("/v1/chat/completions", {"role": "tool", "tool_call_id": "c1"}, []),
        (
            "/api/chat",
            {"role": "user", "thinking": "Hm.", "tool_calls": [OLLAMA_CALL], "tool_name": "f"},
            ["messages[0].thinking", "messages[0].tool_calls", "messages[0].tool_name"],
        ),
        (
            "/api/chat",
            {"role": "assistant", "tool_calls": [OLLAMA_CALL], "tool_call_id": "c1"},
            ["messages[0].tool_call_id"],
        ),
        ("/api/chat", {"role": "tool", "tool_name": "f", "thinking": ""}, []),
    ],
)
async def test_a_field_of_another_role_is_named(
    path: str, message: dict[str, Any], named: list[str]
) -> None:
    asked = {"messages": [{"content": "Hi", **message}], "stream": False}
    async with http_client(EchoEngine(max_model_len=32)) as client:
        response = await client.post(path, json=asked)
    assert response.status_code == 200, response.text
    assert response.headers.get("x-stagecoach-ignored", "") == ", ".join(named)


async def test_items_of_a_response_name_what_changes_nothing() -> None:
    texts = [{"type": f"{kind}_text", "text": "Hm."} for kind in ("summary", "reasoning")]
    items = [
        {"type": "reasoning", "summary": texts[:1], "content": texts[1:]},
        {"type": "reasoning", "summary": texts[:1]},
        {"type": "message", "role": "assistant", "content": "Hi", "phase": "commentary"},
    ]
    async with http_client(EchoEngine(max_model_len=32)) as client:
        response = await client.post("/v1/responses", json={"input": items})
    assert response.status_code == 200, response.text
    assert response.headers["x-stagecoach-ignored"] == "input[0].summary, input[2].phase"
