"""Forms that Ollama takes beside those that its own package sends."""

from typing import Any

import pytest

from coordinator.core.request_spec import ChatPrompt
from coordinator.doors.http.body_workers import MAX_INLINE_BYTES
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import http_client
from tests.contract.scripted_engine import Script, ScriptedEngine

FUNCTION = {"name": "look", "parameters": {"type": "object"}}
TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("text", ["Hi", "x" * (MAX_INLINE_BYTES + 1)], ids=["small", "large"])
@pytest.mark.parametrize(
    "beside", [{}, {"type": None}, {"type": "function", "items": {"type": "string"}}]
)
async def test_a_tool_needs_no_type_and_a_call_no_arguments(
    beside: dict[str, Any], text: str
) -> None:
    call = {"function": {"name": "look", "arguments": None}}
    asked = {
        "messages": [{**TURN, "content": text}, {"role": "assistant", "tool_calls": [call]}],
        "tools": [{**beside, "function": FUNCTION}],
    }
    engine = ScriptedEngine(Script("Yes."))
    async with http_client(engine) as client:
        response = await client.post("/api/chat", json=asked)
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-stagecoach-ignored")
    assert ignored == ("tools[0].items" if "items" in beside else None)
    prompt = engine.specs[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [one.arguments for one in prompt.messages[1].tool_calls] == ["{}"]
    assert [one.name for one in prompt.tools] == ["look"]


@pytest.mark.parametrize(
    ("path", "field", "answer"),
    [("/api/embed", "input", "embeddings"), ("/api/embeddings", "prompt", "embedding")],
)
@pytest.mark.parametrize("fields", [{}, {"?": None}, {"?": ""}], ids=["absent", "null", "empty"])
async def test_without_a_text_only_whether_the_model_is_there_is_asked(
    path: str, field: str, answer: str, fields: dict[str, Any]
) -> None:
    asked = {name.replace("?", field): value for name, value in fields.items()}
    async with http_client(EchoEngine()) as client:
        found = await client.post(path, json={"model": "echo", **asked})
        missing = await client.post(path, json={"model": "none", **asked})
    assert (found.status_code, missing.status_code) == (200, 404)
    assert found.json()[answer] == []


async def test_what_a_description_does_not_depend_on_is_named() -> None:
    asked = {"model": "echo", "system": "x", "template": "y", "options": {"a": 1}, "verbose": True}
    async with http_client(EchoEngine()) as client:
        response = await client.post("/api/show", json=asked)
    assert response.status_code == 200
    named = response.headers["x-stagecoach-ignored"].split(", ")
    assert named == ["verbose", "system", "template", "options"]
