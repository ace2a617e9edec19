"""`/v1/messages`: blocks and events against each other, errors, and what the engine is asked."""

import json
from typing import Any

import httpx2
import pytest

from coordinator.core.tools import ToolMode
from coordinator.doors.access.callers import Callers
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.host_guard import AllowedHosts
from stagecoach.contract.errors import UnavailableError
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import http_client
from tests.contract.scripted_engine import Script, ScriptedEngine

TOOLS = [
    {"name": name, "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    for name in ("look", "find")
]
ASKED: dict[str, Any] = {"max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}
CALLS = (
    "<think>Where is it?</think>\n\nI look.\n"
    '<tool_call>\n{"name": "look", "arguments": {"a": "b"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>'
)


async def asked(engine: EchoEngine, **fields: Any) -> httpx2.Response:
    async with http_client(engine) as client:
        return await client.post("/v1/messages", json={**ASKED, **fields})


def events_of(body: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which is named after its type."""
    assert body.endswith("\n\n")
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events of a stream."""
    start, *between, delta, stop = events
    assert (start["type"], delta["type"], stop["type"]) == (
        *("message_start", "message_delta", "message_stop"),
    )
    message: dict[str, Any] = start["message"]
    inputs: list[str] = []
    for event in between:
        blocks = message["content"]
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks) == len(inputs)
                blocks.append(event["content_block"])
                inputs.append("")
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                new = event["delta"]
                match new["type"]:
                    case "text_delta":
                        blocks[-1]["text"] += new["text"]
                    case "thinking_delta":
                        blocks[-1]["thinking"] += new["thinking"]
                    case "signature_delta":
                        blocks[-1]["signature"] += new["signature"]
                    case "input_json_delta":
                        inputs[-1] += new["partial_json"]
            case "content_block_stop":
                assert event["index"] == len(blocks) - 1
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(inputs[-1])
    return {**message, **delta["delta"], "usage": delta["usage"]}


async def test_thinking_text_and_calls_are_blocks() -> None:
    response = await asked(ScriptedEngine(Script(CALLS)), tools=TOOLS)
    assert response.status_code == 200
    message = response.json()
    thinking, text, look, find = message["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Where is it?")
    assert thinking["signature"]
    assert (text["type"], text["text"].strip()) == ("text", "I look.")
    assert look == {"type": "tool_use", "id": "call_1", "name": "look", "input": {"a": "b"}}
    assert find == {"type": "tool_use", "id": "call_2", "name": "find", "input": {}}
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["id"] == f"msg_{response.headers['request-id']}"
    assert (message["role"], message["model"]) == ("assistant", "scripted")


@pytest.mark.parametrize("num_chars", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text", [CALLS, "Just text.", " \n", "", "<think>Only that", "<think>a</think>\n\n"]
)
@pytest.mark.parametrize("shown", [{}, {"thinking": {"type": "adaptive", "display": "omitted"}}])
async def test_the_events_of_a_stream_are_the_whole_answer(
    num_chars: int, text: str, shown: dict[str, Any]
) -> None:
    engine = ScriptedEngine(Script(text), num_chars=num_chars)
    whole = (await asked(engine, tools=TOOLS, **shown)).json()
    stream = await asked(engine, tools=TOOLS, stream=True, **shown)
    assert stream.headers["content-type"].startswith("text/event-stream")
    told = message_of(events_of(stream.text))
    assert told.pop("id") != whole.pop("id")
    assert told == whole
    assert whole["content"]


async def test_thinking_that_is_omitted_has_its_signature_alone() -> None:
    engine = ScriptedEngine(Script("<think>Hm.</think>Yes."))
    answers = [
        await asked(engine, thinking={"type": "adaptive", "display": display})
        for display in ("summarized", "omitted")
    ]
    shown, hidden = [answer.json()["content"][0] for answer in answers]
    assert (shown["thinking"], hidden["thinking"]) == ("Hm.", "")
    assert shown["signature"] == hidden["signature"]


async def test_a_call_that_is_cut_is_no_call() -> None:
    cut = Script('Well. <tool_call>\n{"name": "look", "arguments": {"a": "', is_cut=True)
    whole = (await asked(ScriptedEngine(cut), tools=TOOLS)).json()
    assert [block["type"] for block in whole["content"]] == ["text"]
    assert whole["stop_reason"] == "max_tokens"
    events = events_of((await asked(ScriptedEngine(cut), tools=TOOLS, stream=True)).text)
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    pieces = [one["delta"].get("partial_json", "") for one in events if "partial_json" in str(one)]
    assert "".join(pieces).startswith('{"a": "')


@pytest.mark.parametrize(
    ("choice", "mode", "names", "several"),
    [
        (None, ToolMode.AUTO, None, True),
        ({"type": "auto"}, ToolMode.AUTO, None, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolMode.AUTO, None, False),
        ({"type": "any"}, ToolMode.REQUIRED, None, True),
        ({"type": "tool", "name": "find"}, ToolMode.REQUIRED, {"find"}, False),
    ],
)
async def test_tools_may_or_must_be_called_as_the_client_says(
    choice: dict[str, Any] | None, mode: ToolMode, names: set[str] | None, several: bool
) -> None:
    engine = EchoEngine()
    assert (await asked(engine, tools=TOOLS, tool_choice=choice)).status_code == 200
    [spec] = engine.specs
    assert spec.tools is not None
    assert (spec.tools.mode, spec.tools.callable_names) == (mode, names)
    assert spec.tools.allows_several is several
    assert [tool.name for tool in spec.tools.tools] == ["look", "find"]


async def test_no_tool_is_shown_where_none_may_be_called() -> None:
    engine = EchoEngine()
    await asked(engine, tools=TOOLS, tool_choice={"type": "none"})
    [spec] = engine.specs
    assert spec.tools is None
    assert spec.prompt.tools == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("thinking", "thinks", "limit"),
    [
        (None, False, None),
        ({"type": "disabled"}, False, None),
        ({"type": "adaptive"}, True, None),
        ({"type": "enabled", "budget_tokens": 2048}, True, 2048),
    ],
)
async def test_thinking_is_asked_for_by_the_template_and_bounded(
    thinking: dict[str, Any] | None, thinks: bool, limit: int | None
) -> None:
    engine = EchoEngine()
    await asked(engine, thinking=thinking, output_config={"effort": "max"})
    [spec] = engine.specs
    arguments = json.loads(spec.prompt.template_arguments)  # type: ignore[union-attr]
    assert arguments == {
        "enable_thinking": thinks,
        "thinking": thinks,
        "reasoning_effort": "high",
    }
    assert spec.max_thinking_tokens == limit


async def test_a_last_message_of_the_assistant_is_continued() -> None:
    engine = EchoEngine()
    messages = [*ASKED["messages"], {"role": "assistant", "content": "The "}]
    await asked(engine, messages=messages)
    assert engine.specs[0].prompt.continue_final_message  # type: ignore[union-attr]
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    response = await asked(
        engine, messages=[*ASKED["messages"], {"role": "assistant", "content": [call]}]
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("messages ends with calls of tools")


@pytest.mark.parametrize("num_chars", [10, 50_000])
async def test_a_large_body_is_what_a_small_one_is(num_chars: int) -> None:
    """The second is read in a process of its own."""
    text = "x" * num_chars
    engine = ScriptedEngine(Script("Yes."))
    response = await asked(
        engine,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "tool_use", "id": "1", "name": "look", "input": {"a": "\u00e9"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "found", "foo": 1},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
        tools=TOOLS,
        stop_sequences=["END"],
        metadata={"user_id": "u"},
    )
    assert response.status_code == 200
    assert response.headers["x-stagecoach-ignored"] == (
        "messages[2].content[0].foo, system[0].cache_control, metadata"
    )
    [spec] = engine.specs
    assert [
        (one.role, one.content[:9], one.name, one.tool_call_id, one.reasoning)
        for one in spec.prompt.messages  # type: ignore[union-attr]
    ] == [
        ("system", "Be brief.", None, None, None),
        ("user", "xxxxxxxxx", None, None, None),
        ("assistant", "", None, None, "Hm."),
        ("tool", "found", "look", "1", None),
        ("user", "So?", None, None, None),
    ]
    [call] = spec.prompt.messages[2].tool_calls  # type: ignore[union-attr]
    assert (call.call_id, call.name, json.loads(call.arguments)) == ("1", "look", {"a": "\u00e9"})
    assert spec.stop == ("END",)


async def test_tokens_are_counted() -> None:
    async with http_client(EchoEngine()) as client:
        response = await client.post(
            "/v1/messages/count_tokens", json={"messages": ASKED["messages"], "system": "Brief."}
        )
    assert response.json() == {"input_tokens": len("system: Brief.\nuser: Hi\n")}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "status", "kind", "beginning"),
    [
        ({"model": "claude"}, 404, "not_found_error", "the model 'claude' is not served here"),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            *(400, "invalid_request_error", "messages[0].content[0]: must be an object whose type"),
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search", "input_schema": {}}]},
            *(400, "invalid_request_error", "tools[0].type: "),
        ),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers is not supported"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice asks for"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "go"}},
            *(400, "invalid_request_error", "tool_choice names 'go'"),
        ),
        ({"tool_choice": {"type": "tool"}}, 400, "invalid_request_error", "tool_choice has a name"),
        ({"foo": 1}, 400, "invalid_request_error", "foo is not a field of this request"),
        (
            {"stop_sequences": ["x" * 2000]},
            *(400, "invalid_request_error", "stop_sequences has a string of 2000"),
        ),
        (
            {
                "output_config": {
                    "format": {"type": "json_schema", "schema": {"a": {"b": 1}, "c": "d" * 70_000}}
                }
            },
            *(400, "invalid_request_error", "output_config.format.schema has "),
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {"c": "d" * 70_000}}},
            *(400, "invalid_request_error", "output_format.schema has "),
        ),
    ],
)
async def test_an_error_has_the_shape_of_anthropics_and_names_the_field(
    fields: dict[str, Any], status: int, kind: str, beginning: str
) -> None:
    response = await asked(EchoEngine(), **fields)
    assert response.status_code == status
    body = response.json()
    assert body["error"]["message"].startswith(beginning)
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": body["error"]["message"]},
        "request_id": response.headers["request-id"],
    }


async def test_a_client_is_told_to_do_without_threads() -> None:
    """Anthropic's own loop over tools asks for one, and sends whole conversations instead."""
    error = (await asked(EchoEngine(), thread={"type": "create"})).json()["error"]
    assert error["message"] == "thread is not supported"
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


async def test_what_wraps_the_routes_refuses_in_that_shape_too() -> None:
    callers = Callers.of_text("ada:0123456789abcdef")
    async with http_client(EchoEngine(), callers=callers) as client:
        refused = await client.post("/v1/messages", json=ASKED)
        taken = await client.post(
            "/messages?beta=true", json=ASKED, headers={"x-api-key": "0123456789abcdef"}
        )
        lost = await client.get("/v1/messages/batches", headers={"x-api-key": "0123456789abcdef"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert taken.status_code == 200
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "not_found_error")
    async with http_client(EchoEngine(), allowed_hosts=AllowedHosts(names=frozenset())) as client:
        foreign = await client.post("/v1/messages", json=ASKED, headers={"host": "evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "permission_error")


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    engine = EchoEngine()
    engine.failure, engine.fail_after_tokens = UnavailableError("a stage is gone"), 2
    events = events_of((await asked(engine, stream=True)).text)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"] == {"type": "overloaded_error", "message": "a stage is gone"}
    assert [event["type"] for event in events].count("message_stop") == 0


async def test_a_client_that_waits_is_pinged() -> None:
    engine = EchoEngine(delay_s=0.2)
    async with http_client(engine, patience=Patience(head_s=0.01, comment_s=0.02)) as client:
        stream = await client.post("/v1/messages", json={**ASKED, "max_tokens": 1, "stream": True})
    events = events_of(stream.text)
    assert events[0] == {"type": "ping"}
    assert events[-1]["type"] == "message_stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "lose"}},
        {"tools": [*TOOLS, TOOLS[0]]},
        {"tool_choice": {"type": "any"}},
    ],
    ids=["no such tool", "two of one name", "no tools"],
)
async def test_tokens_are_not_counted_of_tools_that_a_message_is_refused_for(
    fields: dict[str, Any],
) -> None:
    async with http_client(EchoEngine()) as client:
        whole = await client.post("/v1/messages", json=ASKED | fields)
        counted = await client.post(
            "/v1/messages/count_tokens", json={"messages": ASKED["messages"], **fields}
        )
    assert (whole.status_code, counted.status_code) == (400, 400)
    assert whole.json()["error"] == counted.json()["error"]
