"""The routes under `/api`: lines against the whole, the models, errors, and what is asked."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx2
import pytest

from coordinator.core.catalog import Catalog
from coordinator.core.grammar import GrammarKind
from coordinator.core.request_spec import ChatPrompt, RequestSpec, TextPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.access.callers import Callers
from coordinator.doors.http.app import create_app
from coordinator.doors.http.door import Door
from coordinator.doors.http.event_stream import Patience
from stagecoach.contract.errors import UnavailableError
from tests.contract.catalogs import open_catalog
from tests.contract.echo_engine import MAX_MODEL_LEN, EchoEngine
from tests.contract.http_door import DEADLINE_S, serving_http
from tests.contract.scripted_engine import Script, ScriptedEngine

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }
    for name in ("look", "find")
]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
CALLS = (
    "<think>Where is it?</think>I look."
    '<tool_call>\n{"name": "look", "arguments": {"a": "b"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>\n'
)


@asynccontextmanager
async def client_of(*engines: EchoEngine, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving_http(*engines, **options) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=DEADLINE_S) as client,
    ):
        yield client


async def asked(engine: EchoEngine, path: str, **fields: Any) -> httpx2.Response:
    async with client_of(engine) as client:
        return await client.post(f"/api/{path}", json=fields)


async def spec_of(path: str, **fields: Any) -> RequestSpec:
    """What the engine is asked."""
    engine = ScriptedEngine(Script("Yes."))
    response = await asked(engine, path, **fields)
    assert response.status_code == 200, response.text
    [spec] = engine.specs
    return spec


def lines_of(body: str) -> list[dict[str, Any]]:
    assert body.endswith("\n")
    return [json.loads(line) for line in body.removesuffix("\n").split("\n")]


def joined(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the lines of a conversation."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for line in lines:
        assert line["done"] is (line is lines[-1])
        for name, value in line["message"].items():
            if name == "content":
                message[name] += value
            elif name == "thinking":
                message[name] = message.get(name, "") + value
            elif name == "tool_calls":
                message[name] = [*message.get(name, ()), *value]
    return {**lines[-1], "message": message}


async def test_thinking_content_and_calls_stand_apart() -> None:
    response = await asked(ScriptedEngine(Script(CALLS)), "chat", **CHAT, tools=TOOLS, stream=False)
    answer = response.json()
    assert answer["message"] == {
        "role": "assistant",
        "content": "I look.",
        "thinking": "Where is it?",
        "tool_calls": [
            {"id": "call_1", "function": {"index": 0, "name": "look", "arguments": {"a": "b"}}},
            {"id": "call_2", "function": {"index": 1, "name": "find", "arguments": {}}},
        ],
    }
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("scripted", True, "stop")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (9, -(-len(CALLS) // 3))
    assert answer["total_duration"] == 105_000_000
    assert answer["prompt_eval_duration"] + answer["eval_duration"] == 104_000_000
    datetime.fromisoformat(answer["created_at"])


@pytest.mark.parametrize("num_chars", [1, 7, 1000])
@pytest.mark.parametrize("script", [Script(CALLS), Script(""), Script(CALLS[:-30], is_cut=True)])
async def test_lines_are_streamed_unless_told_otherwise(num_chars: int, script: Script) -> None:
    engine = ScriptedEngine(script, num_chars=num_chars)
    whole = (await asked(engine, "chat", **CHAT, tools=TOOLS, stream=False)).json()
    stream = await asked(engine, "chat", **CHAT, tools=TOOLS)
    assert stream.headers["content-type"] == "application/x-ndjson"
    told = joined(lines_of(stream.text))
    assert told.pop("created_at") >= whole.pop("created_at")
    assert told == whole
    assert whole["done_reason"] == ("length" if script.is_cut else "stop")


@pytest.mark.parametrize("num_chars", [1, 1000])
async def test_a_text_is_answered_as_a_conversation_of_one_message(num_chars: int) -> None:
    engine = ScriptedEngine(Script("<think>Hm.</think>Yes."), num_chars=num_chars)
    whole = (await asked(engine, "generate", prompt="Hi", system="Brief.", stream=False)).json()
    lines = lines_of((await asked(engine, "generate", prompt="Hi", system="Brief.")).text)
    assert (whole["response"], whole["thinking"]) == ("Yes.", "Hm.")
    assert "".join(line["response"] for line in lines) == "Yes."
    assert "".join(line.get("thinking", "") for line in lines) == "Hm."
    assert whole["done_reason"] == lines[-1]["done_reason"] == "stop"
    assert isinstance(engine.specs[0].prompt, ChatPrompt)
    roles = [(one.role, one.content) for one in engine.specs[0].prompt.messages]
    assert roles == [("system", "Brief."), ("user", "Hi")]


async def test_a_raw_text_is_continued() -> None:
    engine = EchoEngine()
    answer = await asked(engine, "generate", prompt="abc", raw=True, options={"num_predict": 5})
    assert engine.specs[0].prompt == TextPrompt(text="abc")
    assert not engine.specs[0].divides_output
    lines = lines_of(answer.text)
    assert "".join(line["response"] for line in lines) == "abcab"
    assert lines[-1]["done_reason"] == "length"


@pytest.mark.parametrize(("path", "fields"), [("chat", {}), ("generate", {"keep_alive": "5m"})])
async def test_whoever_sends_nothing_learns_that_the_model_is_there(
    path: str, fields: dict[str, Any]
) -> None:
    engine = EchoEngine()
    answer = (await asked(engine, path, model="echo", **fields)).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert engine.specs == []


async def test_options_choose_tokens() -> None:
    options = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": 1.5,
        "repeat_penalty": 1.25,
        "stop": ["END"],
        "num_predict": 9,
    }
    spec = await spec_of("chat", **CHAT, options={**options, "num_ctx": 512})
    assert spec.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.25,
    )
    assert (spec.stop, spec.max_tokens) == (("END",), 9)


@pytest.mark.parametrize("options", [{}, {"options": {"num_predict": -1, "seed": -1}}])
async def test_ollamas_defaults_hold(options: dict[str, Any]) -> None:
    spec = await spec_of("chat", **CHAT, **options)
    assert spec.sampling == SamplingParams(temperature=0.8, top_p=0.9, top_k=40)
    assert spec.max_tokens is None


@pytest.mark.parametrize(
    ("form", "kind", "text"),
    [
        ("json", GrammarKind.JSON_OBJECT, ""),
        ({"type": "integer"}, GrammarKind.JSON_SCHEMA, '{"type": "integer"}'),
    ],
)
async def test_a_format_is_kept_to(form: object, kind: GrammarKind, text: str) -> None:
    for path, fields in (("chat", CHAT), ("generate", {"prompt": "Hi"})):
        spec = await spec_of(path, **fields, format=form)
        assert spec.grammar is not None
        assert (spec.grammar.kind, spec.grammar.text) == (kind, text)
        assert (await spec_of(path, **fields, format="")).grammar is None


@pytest.mark.parametrize(
    ("think", "arguments"),
    [
        (None, {}),
        (True, {"enable_thinking": True, "thinking": True}),
        (False, {"enable_thinking": False, "thinking": False}),
        ("low", {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}),
    ],
)
async def test_thinking_is_for_the_template_to_do(
    think: object, arguments: dict[str, object]
) -> None:
    for path, fields in (("chat", CHAT), ("generate", {"prompt": "Hi"})):
        prompt = (await spec_of(path, **fields, think=think)).prompt
        assert isinstance(prompt, ChatPrompt)
        assert json.loads(prompt.template_arguments) == arguments


@pytest.mark.parametrize("num_chars", [10, 50_000])
async def test_calls_and_results_without_ids_are_given_some(num_chars: int) -> None:
    """A large body is read in a process of its own."""
    calls = [{"function": {"name": name, "arguments": {"a": "b"}}} for name in ("look", "find")]
    spec = await spec_of(
        "chat",
        messages=[
            {"role": "user", "content": "x" * num_chars},
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
            {"role": "tool", "content": "found", "tool_name": "find"},
            {"role": "tool", "content": "seen"},
            {"role": "tool", "content": "stray"},
            {"role": "tool", "content": "lost", "tool_name": "find", "tool_call_id": "7"},
        ],
        tools=TOOLS,
    )
    assert isinstance(spec.prompt, ChatPrompt)
    _, asking, *results = spec.prompt.messages
    assert [(one.call_id, one.name, one.arguments) for one in asking.tool_calls] == [
        ("call00001", "look", '{"a": "b"}'),
        ("call00002", "find", '{"a": "b"}'),
    ]
    assert asking.reasoning == "Hm."
    assert [(one.content, one.name, one.tool_call_id) for one in results] == [
        ("found", "find", "call00002"),
        ("seen", "look", "call00001"),
        ("stray", None, None),
        ("lost", "find", "7"),
    ]
    assert spec.tools is not None
    assert [tool.name for tool in spec.tools.tools] == ["look", "find"]


async def test_a_result_may_name_its_call() -> None:
    calls = [{"id": one, "function": {"name": "look", "arguments": {}}} for one in ("1", "2")]
    spec = await spec_of(
        "chat",
        messages=[
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "content": "b", "tool_call_id": "2"},
        ],
    )
    assert isinstance(spec.prompt, ChatPrompt)
    assert spec.prompt.messages[1].tool_call_id == "2"


async def test_models_are_listed_under_each_of_their_names() -> None:
    async with client_of(EchoEngine(names=["a", "b"]), EchoEngine(names=["c"])) as client:
        listed = (await client.get("/api/tags")).json()["models"]
        loaded = (await client.get("/api/ps")).json()["models"]
    assert [one["name"] for one in listed] == [one["model"] for one in loaded] == ["a", "b", "c"]
    assert {one["size"] for one in listed} == {1 << 20}
    assert {one["context_length"] for one in loaded} == {MAX_MODEL_LEN}
    assert {len(one["digest"]) for one in listed} == {64}
    for one in loaded:
        datetime.fromisoformat(one["modified_at"])
        datetime.fromisoformat(one["expires_at"])


async def test_a_model_that_loads_is_listed_and_not_loaded() -> None:
    catalog = Catalog()
    open_catalog(catalog, [EchoEngine(names=["a"])])
    catalog.add(("b",))
    transport = httpx2.ASGITransport(app=create_app(Door(catalog)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        listed = (await client.get("/api/tags")).json()["models"]
        loaded = (await client.get("/api/ps")).json()["models"]
    assert [(one["name"], one["size"] > 0) for one in listed] == [("a", True), ("b", False)]
    assert [one["name"] for one in loaded] == ["a"]


@pytest.mark.parametrize("field", ["model", "name"])
async def test_a_model_is_described(field: str) -> None:
    async with client_of(EchoEngine(names=["a"]), EchoEngine(names=["b"])) as client:
        shown = (await client.post("/api/show", json={field: "b"})).json()
        lost = await client.post("/api/show", json={field: "c"})
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == MAX_MODEL_LEN
    assert shown["capabilities"] == ["completion"]
    assert lost.status_code == 404
    assert list(lost.json()) == ["error"]


async def test_a_version_is_told() -> None:
    async with client_of(EchoEngine()) as client:
        version = (await client.get("/api/version")).json()["version"]
    assert [part.isdigit() for part in version.split(".")] == [True, True, True]


@pytest.mark.parametrize(
    ("path", "fields", "beginning"),
    [
        ("chat", {"options": {"top_p": 7}}, "options.top_p: "),
        ("chat", {"options": {"mirostat": 2}}, "options.mirostat is not supported"),
        ("chat", {"options": {"foo": 2}}, "options.foo is not a field"),
        ("chat", {"options": {"stop": ["x" * 2000]}}, "options.stop has a string of 2000"),
        ("chat", {"messages": [{"role": "user", "images": ["a"]}]}, "messages[0].images is not"),
        ("chat", {"messages": [{"role": "critic"}]}, "messages[0].role: "),
        ("chat", {"format": {"a": "b" * 70_000}}, "format has "),
        ("chat", {"format": 3}, 'format: must be "json" or a JSON schema'),
        ("chat", {"top_logprobs": 2}, "top_logprobs is set, which needs logprobs to be true"),
        ("generate", {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
        ("generate", {"prompt": "a", "raw": True, "system": "b"}, "system is set beside raw"),
        ("generate", {"prompt": "a" * MAX_MODEL_LEN, "raw": True}, f"{MAX_MODEL_LEN} prompt tok"),
    ],
)
async def test_an_error_has_the_shape_of_ollamas_and_names_the_field(
    path: str, fields: dict[str, Any], beginning: str
) -> None:
    response = await asked(EchoEngine(), path, **{**(CHAT if path == "chat" else {}), **fields})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(beginning)


async def test_what_changes_nothing_is_named() -> None:
    response = await asked(
        EchoEngine(), "chat", **CHAT, keep_alive="5m", options={"num_ctx": 1, "num_gpu": 2}
    )
    ignored = response.headers["x-stagecoach-ignored"]
    assert set(ignored.split(", ")) == {"keep_alive", "options.num_ctx", "options.num_gpu"}


async def test_what_wraps_the_routes_refuses_in_that_shape_too() -> None:
    callers = Callers.of_text("ada:0123456789abcdef")
    async with client_of(EchoEngine(), callers=callers) as client:
        refused = await client.get("/api/tags")
        key = {"authorization": "Bearer 0123456789abcdef"}
        lost = await client.post("/api/pull", json={"model": "x"}, headers=key)
        taken = await client.get("/api/tags", headers=key)
    assert (refused.status_code, list(refused.json())) == (401, ["error"])
    assert (lost.status_code, list(lost.json())) == (404, ["error"])
    assert taken.status_code == 200


async def test_a_stream_that_fails_ends_with_the_error() -> None:
    engine = EchoEngine()
    engine.failure, engine.fail_after_tokens = UnavailableError("a stage is gone"), 2
    assert lines_of((await asked(engine, "chat", **CHAT)).text)[-1] == {"error": "a stage is gone"}


async def test_a_client_that_waits_is_sent_blanks_that_belong_to_the_next_line() -> None:
    engine = EchoEngine(delay_s=0.2)
    async with client_of(engine, patience=Patience(head_s=0.01, comment_s=0.02)) as client:
        stream = await client.post("/api/chat", json={**CHAT, "options": {"num_predict": 1}})
    assert stream.text.startswith(" ")
    assert [line["done"] for line in lines_of(stream.text)] == [False, True]
