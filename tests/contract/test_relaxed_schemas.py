"""A tool's schema that no grammar can keep to is named, as its client's door calls the field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from coordinator.doors.http.ignored_fields import IgnoredFieldsHeader, note_relaxed
from tests.byte_models import byte_model
from tests.contract.byte_doors import MAX_MODEL_LEN, MODEL, serving
from tests.contract.http_door import in_background

HARD: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "string", "pattern": "(?<=a)b"}},
}
EASY: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "string"}}}
TEMPLATES = Path(__file__).parents[1] / "recorded_calls" / "templates"
TURNS = [{"role": "user", "content": "Hi."}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = byte_model(tmp_path_factory.mktemp("model"), max_model_len=MAX_MODEL_LEN)
    with in_background(serving(model)) as found:
        yield found


def function(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


CHAT = {
    "messages": TURNS,
    "max_tokens": 1,
    "tools": [function("f", EASY), function("g", HARD), function("h", HARD)],
}
MESSAGES = {
    "messages": TURNS,
    "max_tokens": 1,
    "tools": [{"name": "f", "input_schema": EASY}, {"name": "g", "input_schema": HARD}],
}
RESPONSES = {
    "input": "Hi.",
    "max_output_tokens": 1,
    "tools": [
        {"type": "web_search"},
        {"type": "function", "name": "f", "parameters": EASY},
        {"type": "function", "name": "g", "parameters": HARD},
        {
            "type": "namespace",
            "name": "n",
            "description": "N.",
            "tools": [
                {"type": "function", "name": "f", "parameters": EASY},
                {"type": "function", "name": "g", "parameters": HARD},
            ],
        },
    ],
}
OLLAMA = {"messages": TURNS, "options": {"num_predict": 1}, "tools": CHAT["tools"]}
OF_CHAT = ["tools[1].function.parameters", "tools[2].function.parameters"]
OF_RESPONSES = ["tools[2].parameters", "tools[3].tools[1].parameters"]
CASES = [
    ("/v1/chat/completions", CHAT, OF_CHAT),
    ("/v1/messages", MESSAGES, ["tools[1].input_schema"]),
    ("/v1/responses", RESPONSES, OF_RESPONSES),
    ("/api/chat", OLLAMA, OF_CHAT),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "places"), CASES, ids=[case[0] for case in CASES])
def test_a_schema_that_calls_are_not_held_to_is_named(
    address: str, path: str, body: dict[str, Any], places: list[str], *, stream: bool
) -> None:
    url = f"http://{address}{path}"
    answer = httpx2.post(url, json={"model": MODEL, "stream": stream, **body}, timeout=60)
    assert answer.status_code == 200
    named = answer.headers["x-stagecoach-ignored"].split(", ")
    assert [place for place in named if not place.startswith("tools[0]")] == places


def test_of_a_parameter_that_is_written_by_itself_the_whole_schema_is_named(
    tmp_path: Path,
) -> None:
    """The name of a parameter is the client's, and may hold anything."""
    template = TEMPLATES / "openbmb-MiniCPM5-1B.jinja"
    model = byte_model(tmp_path, max_model_len=16_384, chat_template=template.read_text())
    hard = {"type": "object", "properties": {"x\n": {"type": "array", "items": HARD}}}
    body = {"model": MODEL, **CHAT, "tools": [function("f", hard)]}
    with in_background(serving(model)) as address:
        answer = httpx2.post(f"http://{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["x-stagecoach-ignored"] == "tools[0].function.parameters"


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_what_must_be_kept_to_is_refused_by_the_same_name(address: str, choice: str) -> None:
    strict = function("g", HARD)
    strict["function"]["strict"] = choice == "auto"
    body = {"model": MODEL, **CHAT, "tools": [function("f", EASY), strict], "tool_choice": choice}
    answer = httpx2.post(f"http://{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools[1].function.parameters"


def test_a_schema_that_is_kept_to_is_not_named(address: str) -> None:
    body = {"model": MODEL, **CHAT, "tools": [function("f", EASY)]}
    answer = httpx2.post(f"http://{address}/v1/chat/completions", json=body, timeout=60)
    assert "x-stagecoach-ignored" not in answer.headers


async def test_the_log_names_it_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fields = [f"prompt.chat.tools[{index}].parameters" for index in (0, 7)]
        note_relaxed(scope, fields)
        await Response()(scope, receive, send)

    names = {"field_names": {"prompt.chat.tools": "tools[].function"}}
    answered = IgnoredFieldsHeader(app)
    messages: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("there is no body")

    async def send(message: Message) -> None:
        messages.append(message)

    with caplog.at_level("INFO"):
        for _ in range(2):
            await answered({"type": "http", "state": dict(names)}, receive, send)
    assert caplog.text.count("a schema in tools[].function.parameters that no grammar can") == 1
    headers = [dict(one["headers"]) for one in messages if "headers" in one]
    places = b"tools[0].function.parameters, tools[7].function.parameters"
    assert [one[b"x-stagecoach-ignored"] for one in headers] == [places, places]
