"""`/v1/responses` over HTTP: what is kept, for whom, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from coordinator.doors.access.callers import Callers
from coordinator.doors.http import body_workers
from coordinator.doors.http.event_stream import Patience
from stagecoach.contract import errors
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import http_client, serving_http
from tests.responses_events import check_events, check_response, read_events

PATH = "/v1/responses"
SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
ASK: dict[str, Any] = {"input": "hi", "max_output_tokens": 4}


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
async def client(engine: EchoEngine) -> AsyncIterator[httpx2.AsyncClient]:
    async with http_client(engine) as found:
        yield found


async def made(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={**ASK, **fields})
    assert response.status_code == 200, response.text
    if fields.get("stream"):
        return check_events(read_events(response.text))
    check_response(response.json())
    whole: dict[str, Any] = response.json()
    return whole


def told(engine: EchoEngine) -> tuple[ChatMessage, ...]:
    """The conversation that was told last."""
    prompt = engine.specs[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


async def test_a_stream_ends_with_what_is_answered_whole(client: httpx2.AsyncClient) -> None:
    fields = {"metadata": {"a": "b"}, "instructions": "Echo."}
    whole, streamed = [await made(client, stream=stream, **fields) for stream in (False, True)]
    assert whole["metadata"] == {"a": "b"}
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}

    def without_ids(response: dict[str, Any]) -> dict[str, Any]:
        items = [{**item, "id": ""} for item in response["output"]]
        return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": items}

    assert without_ids(whole) == without_ids(streamed)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_shown_again_until_it_is_deleted(
    client: httpx2.AsyncClient, stream: bool
) -> None:
    response = await made(client, stream=stream)
    path = f"{PATH}/{response['id']}"
    assert (await client.get(path)).json() == response
    assert (await client.delete(path)).json() == {
        "id": response["id"],
        "object": "response",
        "deleted": True,
    }
    for method in ("GET", "DELETE"):
        gone = await client.request(method, path)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_what_a_kept_response_is_not_asked_for_is_named(client: httpx2.AsyncClient) -> None:
    path = f"{PATH}/{(await made(client))['id']}"
    query = "?include[]=reasoning.encrypted_content&starting_after=3&stream=false"
    plain, asked = await client.get(path), await client.get(path + query)
    assert asked.json() == plain.json()
    assert "x-stagecoach-ignored" not in plain.headers
    assert asked.headers["x-stagecoach-ignored"] == "include[], starting_after"
    items = await client.get(f"{path}/input_items?include=message.input_image.image_url")
    assert items.headers["x-stagecoach-ignored"] == "include"


async def test_what_is_not_to_be_kept_is_not(client: httpx2.AsyncClient) -> None:
    response = await made(client, store=False)
    assert response["store"] is False
    assert (await client.get(f"{PATH}/{response['id']}")).status_code == 404


async def test_a_response_goes_on_with_the_conversation_before_it(
    client: httpx2.AsyncClient, engine: EchoEngine
) -> None:
    first = await made(client, instructions="Once.")
    second = await made(client, input="more", previous_response_id=first["id"], stream=True)
    assert second["previous_response_id"] == first["id"]
    assert told(engine) == (
        ChatMessage(role="user", content="hi"),
        ChatMessage(role="assistant", content="syst"),
        ChatMessage(role="user", content="more"),
    )
    await client.delete(f"{PATH}/{first['id']}")
    await made(client, input="and more", previous_response_id=second["id"])
    assert [one.content for one in told(engine)] == ["hi", "syst", "more", "user", "and more"]
    gone = await client.post(PATH, json={**ASK, "previous_response_id": first["id"]})
    assert gone.status_code == 400
    assert gone.json()["error"]["param"] == "previous_response_id"
    assert gone.json()["error"]["code"] == "previous_response_not_found"


async def test_items_are_listed_latest_first_a_page_at_a_time(client: httpx2.AsyncClient) -> None:
    first = await made(client, input=[{"role": "user", "content": text} for text in "ab"])
    second = await made(client, input="c", previous_response_id=first["id"])
    path = f"{PATH}/{second['id']}/input_items"

    async def page(**query: Any) -> tuple[list[str], dict[str, Any]]:
        listed = (await client.get(path, params=query)).json()
        data = listed.pop("data")
        assert (listed["first_id"], listed["last_id"]) == (
            (data[0]["id"], data[-1]["id"]) if data else ("", "")
        )
        return [one["content"][0]["text"] for one in data], listed

    assert (await page())[0] == ["c", "user", "b", "a"]
    texts, listed = await page(order="asc", limit=3)
    assert (texts, listed["has_more"]) == (["a", "b", "user"], True)
    texts, listed = await page(order="asc", limit=3, after=listed["last_id"])
    assert (texts, listed["has_more"]) == (["c"], False)
    assert (await page(order="asc", after=listed["last_id"]))[0] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(("limit=0", "limit"), ("limit=x", "limit"), ("limit=10000000", "limit")),
        *(("order=up", "order"), ("after=msg_1", "after")),
    ],
)
async def test_a_page_that_is_not_there_is_refused_by_name(
    client: httpx2.AsyncClient, query: str, param: str
) -> None:
    response = await made(client)
    refused = await client.get(f"{PATH}/{response['id']}/input_items?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


async def test_only_what_runs_in_the_background_could_be_cancelled_or_watched(
    client: httpx2.AsyncClient,
) -> None:
    response = await made(client)
    path = f"{PATH}/{response['id']}"
    for refused in (await client.post(f"{path}/cancel"), await client.get(f"{path}?stream=true")):
        assert refused.status_code == 400
    assert (await client.post(f"{PATH}/resp_1/cancel")).status_code == 404


async def test_a_reference_stands_for_an_item_that_is_kept(
    client: httpx2.AsyncClient, engine: EchoEngine
) -> None:
    first = await made(client)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    second = await made(client, input=[reference, {"role": "user", "content": "go on"}])
    assert [one.content for one in told(engine)] == ["user", "go on"]
    items = (await client.get(f"{PATH}/{second['id']}/input_items")).json()["data"]
    assert items[1] == first["output"][0]


async def test_a_response_belongs_to_the_key_that_made_it() -> None:
    keys = {name: name * 40 for name in "ab"}
    callers = Callers.of_text("\n".join(f"{name}:{key}" for name, key in keys.items()))
    async with serving_http(EchoEngine(), callers=callers) as address:
        ours, theirs = [
            httpx2.AsyncClient(
                base_url=f"http://{address}", headers={"authorization": f"Bearer {key}"}, timeout=20
            )
            for key in keys.values()
        ]
        async with ours, theirs, httpx2.AsyncClient(base_url=f"http://{address}") as stranger:
            response = await made(ours)
            path = f"{PATH}/{response['id']}"
            assert (await stranger.get(path)).status_code == 401
            for refused in (
                await theirs.get(path),
                await theirs.get(f"{path}/input_items"),
                await theirs.post(f"{path}/cancel"),
                await theirs.delete(path),
            ):
                assert refused.status_code == 404
            later = await theirs.post(PATH, json={**ASK, "previous_response_id": response["id"]})
            assert later.status_code == 400
            assert (await ours.get(path)).json() == response


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search'"),
        ({"tools": [{"type": "file_search"}]}, "tools[0]", "'file_search'"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0]", "'mcp'"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]", "'custom'"),
        ({"tool_choice": {"type": "computer"}}, "tool_choice", "'computer'"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {
                "tools": [{"type": "function", "name": "f"}],
                "tool_choice": {"type": "function", "name": "g"},
            },
            "tool_choice",
            "'g'",
        ),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools", "'a b'"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]", "'web_search_call'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "'input_image'",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", "'msg_1'"),
        ({"input": []}, "input", "empty"),
        ({"input": None}, "input", "empty"),
        ({"background": True}, "background", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"include": ["everything"]}, "include[0]", "everything"),
        ({"temperature": 3}, "temperature", "3"),
        ({"max_output_tokens": 0}, "max_output_tokens", "0"),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "x", "schema": {"a": "b" * 70_000}}
                }
            },
            "text.format.schema",
            "at most",
        ),
        ({"unheard_of": 1}, "unheard_of", "not a field"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    client: httpx2.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    response = await client.post(PATH, json={**ASK, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


async def test_what_changes_nothing_is_taken_and_named(client: httpx2.AsyncClient) -> None:
    fields = {
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"verbosity": "low"},
        "user": "u",
        "service_tier": "flex",
        "top_logprobs": 2,
    }
    response = await client.post(PATH, json={**ASK, **fields})
    assert response.status_code == 200
    named = set(response.headers["x-stagecoach-ignored"].split(", "))
    assert named == {
        *("include", "truncation", "reasoning.effort", "reasoning.summary", "text.verbosity"),
        *("user", "service_tier", "top_logprobs"),
    }


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UnavailableError, "server_error"),
        (errors.QueueFullError, "rate_limit_exceeded"),
        (errors.InternalError, "server_error"),
    ],
)
async def test_what_fails_in_the_middle_is_a_failed_response(
    client: httpx2.AsyncClient,
    engine: EchoEngine,
    kind: type[errors.StagecoachError],
    code: str,
) -> None:
    engine.failure, engine.fail_after_tokens = kind("gone"), 2
    response = await client.post(PATH, json={**ASK, "stream": True})
    failed = check_events(read_events(response.text))
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": code, "message": "gone"}
    assert (await client.get(f"{PATH}/{failed['id']}")).status_code == 404


async def test_a_failure_before_the_first_event_has_a_status(
    client: httpx2.AsyncClient, engine: EchoEngine
) -> None:
    engine.failure = errors.QueueFullError("full")
    for stream in (False, True):
        assert (await client.post(PATH, json={**ASK, "stream": stream})).status_code == 429


async def test_a_failure_after_the_head_is_told_as_events() -> None:
    engine = EchoEngine(delay_s=0.3)
    engine.failure, engine.fail_after_tokens = errors.UnavailableError("gone"), 0
    patience = Patience(head_s=0.05, comment_s=0.05)
    async with (
        serving_http(engine, patience=patience) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=20) as client,
    ):
        response = await client.post(PATH, json={**ASK, "stream": True})
    assert ": waiting" in response.text
    assert check_events(read_events(response.text))["error"]["message"] == "gone"


async def test_who_leaves_ends_the_response(engine: EchoEngine) -> None:
    engine.delay_s = 3600
    async with serving_http(engine) as address:
        async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=20) as client:
            asking = asyncio.create_task(client.post(PATH, json=ASK))
            while not engine.running:  # noqa: ASYNC110 - the engine tells nobody
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        while engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_large_body_asks_for_what_it_would_ask_for_as_a_small_one(
    client: httpx2.AsyncClient, engine: EchoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.max_model_len = 200_000
    body = {
        **ASK,
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "long " * 10_000},
            {"type": "reasoning", "summary": [], "content": None},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1", "strange": 2},
        ],
        "tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object"}},
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": SCHEMA},
        "metadata": {"a": "b"},
    }
    large = await client.post(PATH, json=body)
    monkeypatch.setattr(body_workers, "MAX_INLINE_BYTES", len(json.dumps(body)) * 2)
    small = await client.post(PATH, json=body)
    assert large.status_code == small.status_code == 200, large.text
    one, other = engine.specs
    assert (one.prompt, one.tools, one.grammar) == (other.prompt, other.tools, other.grammar)
    assert large.headers["x-stagecoach-ignored"] == small.headers["x-stagecoach-ignored"]
    listed = [
        (await client.get(f"{PATH}/{response.json()['id']}/input_items")).json()["data"]
        for response in (large, small)
    ]
    assert [[{**item, "id": ""} for item in items] for items in listed] == [
        [{**item, "id": ""} for item in listed[0]]
    ] * 2
    assert large.json()["metadata"] == {"a": "b"}


async def test_paths_without_v1_lead_there_too(client: httpx2.AsyncClient) -> None:
    response = (await client.post("/responses", json=ASK)).json()
    assert (await client.get(f"/responses/{response['id']}/")).json() == response
