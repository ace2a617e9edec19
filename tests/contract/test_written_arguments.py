"""Arguments of calls go out as the model wrote them, also those that Python does not hold."""

from typing import Any

import pytest

from tests.contract.http_door import http_client
from tests.contract.scripted_engine import Script, ScriptedEngine

SCHEMA = {"type": "object", "properties": {"a": {}}}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
MESSAGES = ASKED | {"max_tokens": 64, "tools": [{"name": "look", "input_schema": SCHEMA}]}
OLLAMA = ASKED | {
    "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
}
ARGUMENTS = {
    "a number of 5000 digits": '{"a": ' + 5000 * "1" + "}",
    "a number above all doubles": '{"a": 1e999}',
    "2000 levels": '{"a": ' + 2000 * "[" + 2000 * "]" + "}",
    "half of a surrogate pair": r'{"a": "\ud83d"}',
    "more digits than a double has": '{"a": 0.12345678901234567890}',
    "two fields of one name": '{"a": 1, "a": 2}',
}


async def answered(path: str, asked: dict[str, Any], arguments: str) -> str:
    call = f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'
    async with http_client(ScriptedEngine(Script(call), num_chars=64)) as client:
        response = await client.post(path, json=asked)
    assert response.status_code == 200, response.text
    return response.text


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        ("/v1/messages", MESSAGES, "input"),
        ("/api/chat", OLLAMA | {"stream": False}, "arguments"),
        ("/api/chat", OLLAMA, "arguments"),
    ],
    ids=["messages", "ollama", "ollama, streamed"],
)
async def test_arguments_go_out_as_they_were_written(
    path: str, asked: dict[str, Any], field: str, arguments: str
) -> None:
    assert f'"{field}":{arguments}' in await answered(path, asked, arguments)


async def test_a_line_of_a_stream_has_no_break_in_it_where_arguments_have() -> None:
    lines = (await answered("/api/chat", OLLAMA, '{\n  "a": "\\n"\r\n}')).splitlines()
    assert len(lines) == 2
    assert r'"arguments":{   "a": "\n"  }' in lines[0]
