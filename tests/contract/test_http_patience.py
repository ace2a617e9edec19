"""A stream that has nothing to tell: its head, and comments that every client skips."""

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from coordinator.doors.http.event_stream import Patience
from stagecoach.contract import errors
from tests.contract.echo_engine import EchoEngine, Preparing
from tests.contract.http_door import events_of, serving_http

SHORT = Patience(head_s=0.05, comment_s=0.05)
CHAT = "/v1/chat/completions"
COMMENT = ": waiting"


def chat(**settings: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "abc"}]
    return {"messages": messages, "max_tokens": 3, "stream": True, **settings}


async def post(address: str, body: dict[str, Any], path: str = CHAT) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=20) as client:
        return await client.post(path, json=body)


def without_comments(body: str) -> tuple[str, int]:
    blocks = body.split("\n\n")
    kept = [block for block in blocks if block != COMMENT]
    return "\n\n".join(kept), len(blocks) - len(kept)


async def test_a_stream_that_waits_says_so_and_is_the_same_stream() -> None:
    async with serving_http(EchoEngine(), patience=SHORT) as address:
        quick = await post(address, chat())
    async with serving_http(EchoEngine(delay_s=0.3), patience=SHORT) as address:
        slow = await post(address, chat())
    body, num_comments = without_comments(slow.text)
    assert num_comments >= 3
    assert slow.text.index(COMMENT) < slow.text.index("data:")
    assert ":" + slow.text.rsplit(":", 1)[1] != f"{COMMENT}\n\n"

    def choices(text: str) -> list[Any]:
        return [event.chunk["choices"] for event in events_of(text)[:-1]]

    assert choices(body) == choices(quick.text)
    assert COMMENT not in quick.text
    varying = dict.fromkeys(("date", "x-request-id", "request-id"), "")
    assert {**slow.headers, **varying} == {**quick.headers, **varying}


async def test_the_head_comes_before_the_first_token_and_the_request_can_still_be_left() -> None:
    engine = EchoEngine(delay_s=3600)
    async with serving_http(engine, patience=Patience(head_s=0.05, comment_s=3600)) as address:
        async with (
            httpx2.AsyncClient(base_url=f"http://{address}") as client,
            client.stream("POST", CHAT, json=chat()) as response,
        ):
            assert response.status_code == 200
            assert engine.running
        while engine.running:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("delay_s", [0.0, 0.2])
async def test_a_failure_has_its_status_until_the_head_is_gone_and_is_an_event_then(
    delay_s: float,
) -> None:
    engine = EchoEngine(delay_s=delay_s)
    engine.failure = errors.UnavailableError("a stage was lost")
    engine.fail_after_tokens = 0
    async with serving_http(engine, patience=SHORT) as address:
        response = await post(address, chat())
    if delay_s == 0.0:
        assert response.status_code == 503
        error = response.json()["error"]
    else:
        assert response.status_code == 200
        [event] = events_of(without_comments(response.text)[0])
        error = event.chunk["error"]
    assert error["code"] == "unavailable"
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_request_that_is_refused_late_has_its_status_until_the_head_is_gone(
    is_late: bool,
) -> None:
    engine = EchoEngine()
    preparing = engine.preparing = Preparing()
    engine.failure = errors.InvalidArgumentError("a wrong grammar", field="grammar")
    async with serving_http(engine, patience=SHORT) as address:
        posting = asyncio.create_task(post(address, chat()))
        while is_late and not preparing.num_waiting:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3 if is_late else 0)
        preparing.go_on.set()
        response = await posting
    if is_late:
        assert response.status_code == 200
        [event] = events_of(without_comments(response.text)[0])
        error = event.chunk["error"]
    else:
        assert response.status_code == 400
        error = response.json()["error"]
    assert "a wrong grammar" in error["message"]


async def test_a_bug_after_the_head_is_an_event_too() -> None:
    engine = EchoEngine(delay_s=0.2)
    engine.failure = RuntimeError("secret")
    engine.fail_after_tokens = 0
    async with serving_http(engine, patience=SHORT) as address:
        response = await post(address, chat())
    [event] = events_of(without_comments(response.text)[0])
    assert event.chunk["error"]["code"] == "internal_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("n", [1, 3])
async def test_the_official_package_waits(n: int) -> None:
    async with serving_http(EchoEngine(delay_s=0.2), patience=SHORT) as address:
        base_url = f"http://{address}/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="echo",
                messages=[{"role": "user", "content": "abc"}],
                max_tokens=3,
                n=n,
                stream=True,
            )
            chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert sorted(text) == sorted("use" * n)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("n", [1, 2])
async def test_every_chunk_has_the_usage_so_far_when_that_is_wanted(path: str, n: int) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat(n=n, stream_options=options)
    if path != CHAT:
        body["prompt"] = "abc"
        del body["messages"]
    async with serving_http(EchoEngine()) as address:
        response = await post(address, body, path)
        options["include_usage"] = False
        silent = await post(address, body, path)
    usages = [event.chunk["usage"] for event in events_of(response.text)[:-1]]
    final = usages.pop()
    counted = [usage["completion_tokens"] for usage in usages]
    assert counted == sorted(counted)
    assert counted[0] <= n
    assert counted[-1] == final["completion_tokens"] == 3 * n
    assert {usage["prompt_tokens"] for usage in usages} == {final["prompt_tokens"]}
    assert all(
        usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        for usage in usages
    )
    assert "usage" not in silent.text


def test_the_usual_patience_is_what_the_documents_say() -> None:
    assert Patience() == Patience(head_s=5.0, comment_s=10.0)
