"""An error of `/v1/responses` names the item or the function as its client wrote it.

The core counts messages and functions, of which there are fewer or more than items and tools.
"""

from typing import Any

import httpx2
import pytest

from stagecoach.contract.errors import InvalidArgumentError
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import http_client

CALLS = [
    {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}
    for number in (1, 2)
]
ITEMS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "reasoning", "id": "rs_2", "summary": []},
    *CALLS,
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
]
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
TOOLS = [
    {"type": "web_search"},
    {**FUNCTION, "name": "first"},
    {"type": "namespace", "name": "near", "tools": [{**FUNCTION, "name": "g"}, FUNCTION]},
    FUNCTION,
]
MESSAGES, SHOWN = "prompt.chat.messages", "prompt.chat.tools"


async def named(engine: EchoEngine, client: httpx2.AsyncClient, field: str, **asked: Any) -> str:
    engine.failure = InvalidArgumentError(f"{field} is not good", field=field)
    response = await client.post("/v1/responses", json=asked)
    engine.failure = None
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == f"{error['param']} is not good"
    param: str = error["param"]
    return param


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (f"{MESSAGES}[0]", "instructions"),
        (f"{MESSAGES}[1].content", "input[1]"),
        (f"{MESSAGES}[2].reasoning", "input[2]"),
        (f"{MESSAGES}[2].tool_calls[0].arguments", "input[4].arguments"),
        (f"{MESSAGES}[2].tool_calls[1].arguments", "input[5].arguments"),
        (f"{MESSAGES}[2].tool_calls[1].id", "input[5].call_id"),
        (f"{MESSAGES}[2].tool_calls[1].name", "input[5]"),
        (f"{MESSAGES}[3].tool_call_id", "input[6]"),
        (MESSAGES, "input"),
        (f"{SHOWN}[0].parameters.type", "tools[1].parameters.type"),
        (f"{SHOWN}[1].parameters", "tools[2].tools[0].parameters"),
        (f"{SHOWN}[2].parameters.properties.a", "tools[2].tools[1].parameters.properties.a"),
        (f"{SHOWN}[3].description", "tools[3].description"),
        (SHOWN, "tools"),
    ],
)
async def test_an_error_names_the_item_or_the_tool(field: str, name: str) -> None:
    engine = EchoEngine()
    async with http_client(engine) as client:
        asked = {"input": ITEMS, "tools": TOOLS, "instructions": "Be brief."}
        assert await named(engine, client, field, **asked) == name


async def test_items_of_a_response_before_are_no_items_of_the_input() -> None:
    engine = EchoEngine()
    async with http_client(engine) as client:
        made = await client.post("/v1/responses", json={"input": ITEMS, "max_output_tokens": 1})
        asked = {"previous_response_id": made.json()["id"], "input": [ITEMS[1], CALLS[0]]}
        for field, name in (
            (f"{MESSAGES}[0]", "previous_response_id"),
            (f"{MESSAGES}[2].tool_calls[0].arguments", "previous_response_id"),
            (f"{MESSAGES}[5]", "input[0]"),
            (f"{MESSAGES}[6].tool_calls[0].arguments", "input[1].arguments"),
        ):
            assert await named(engine, client, field, **asked) == name
        assert await named(engine, client, f"{MESSAGES}[0]", input="Hi") == "input"
