"""Server-sent events as they are on the wire, and what ends a stream early."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from stagecoach.contract import errors
from tests.contract.echo_engine import EchoEngine, Preparing
from tests.contract.http_door import events_of, serving_http

UNICODE = "naïve 日本語 🚀👩‍👩‍👧 ﷽ e\u0301"
DEADLINE_S = 90.0


def chat(text: str = UNICODE, **settings: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 60, **settings}


async def post(address: str, path: str, body: dict[str, Any]) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=DEADLINE_S) as client:
        return await client.post(path, json=body)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


async def test_a_chat_stream_has_the_role_the_text_one_reason_the_usage_and_done() -> None:
    async with serving_http(EchoEngine()) as address:
        whole = (await post(address, "/v1/chat/completions", chat())).json()
        response = await post(
            address,
            "/v1/chat/completions",
            chat(stream=True, stream_options={"include_usage": True}),
        )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *events, usage, done = events_of(response.text)
    assert done.data == "[DONE]"
    assert usage.chunk["choices"] == []
    assert usage.chunk["usage"] == whole["usage"]
    chunks = [ChatCompletionChunk.model_validate(event.chunk) for event in events]
    assert all(event.chunk["usage"] is None for event in events)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert response.headers["x-request-id"] in chunks[0].id
    roles = [chunk.choices[0].delta.role for chunk in chunks]
    assert roles == ["assistant"] + [None] * (len(chunks) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert UNICODE in text


async def test_a_completion_stream_has_the_same_text_and_one_reason() -> None:
    body = {"prompt": UNICODE, "max_tokens": 100}
    async with serving_http(EchoEngine()) as address:
        whole = (await post(address, "/v1/completions", body)).json()
        response = await post(address, "/v1/completions", {**body, "stream": True})
    *events, done = events_of(response.text)
    assert done.data == "[DONE]"
    chunks = [event.chunk for event in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    Completion.model_validate(chunks[-1])
    reasons = [event.chunk["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]
    assert all("usage" not in event.chunk for event in events)


async def test_a_failure_in_the_middle_is_one_event_and_no_done() -> None:
    engine = EchoEngine()
    engine.failure = errors.UnavailableError("a stage was lost again and again")
    engine.fail_after_tokens = 3
    async with serving_http(engine) as address:
        response = await post(address, "/v1/chat/completions", chat("abc", stream=True))
    assert response.status_code == 200
    *events, last = events_of(response.text)
    assert last.chunk == {
        "error": {
            "message": "a stage was lost again and again",
            "type": "server_error",
            "param": None,
            "code": "unavailable",
        }
    }
    assert len(events) == 4
    assert all("error" not in event.chunk for event in events)
    assert "[DONE]" not in response.text


async def test_a_bug_in_the_middle_shows_no_more_than_its_name_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = EchoEngine()
    engine.failure = RuntimeError("/secret/path")
    engine.fail_after_tokens = 3
    async with serving_http(engine) as address:
        response = await post(address, "/v1/chat/completions", chat("abc", stream=True))
    error = events_of(response.text)[-1].chunk["error"]
    assert error["type"] == "server_error"
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text
    assert f"internal error in request chatcmpl-{response.headers['x-request-id']}" in caplog.text


async def test_one_of_several_choices_that_fails_ends_all_of_them() -> None:
    engine = EchoEngine(delay_s=0.001)
    engine.failure = errors.InternalError("one failed")
    engine.fail_after_tokens = 5
    async with serving_http(engine) as address:
        response = await post(address, "/v1/chat/completions", chat("abc", stream=True, n=4))
        assert events_of(response.text)[-1].chunk["error"]["code"] == "internal_error"
        assert not engine.running


async def test_choices_are_admitted_together_or_not_at_all() -> None:
    engine = EchoEngine(delay_s=0.001, max_running=3)
    async with serving_http(engine) as address:
        response = await post(address, "/v1/chat/completions", chat(n=4, stream=True))
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
        assert not engine.running


async def test_the_choices_of_a_long_prompt_are_admitted_at_once() -> None:
    """The scheduler sees to it that their prompt is computed once."""
    engine = EchoEngine(delay_s=0.1)
    async with serving_http(engine) as address:
        posting = asyncio.create_task(
            post(address, "/v1/completions", {"prompt": "x" * 200, "max_tokens": 2, "n": 3})
        )
        await until(lambda: len(engine.running) == 3)
        choices = (await posting).json()["choices"]
    assert [choice["text"] for choice in choices] == ["xx"] * 3
    assert [choice["index"] for choice in choices] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("delay_s", [0.002, 3600.0], ids=["in decode", "queued"])
async def test_a_client_that_leaves_ends_its_requests(stream: bool, n: int, delay_s: float) -> None:
    engine = EchoEngine(delay_s=delay_s)
    body = json.dumps(chat("abc", stream=stream, n=n, max_tokens=4000)).encode()
    async with serving_http(engine) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        await until(lambda: len(engine.running) == n)
        if stream and delay_s < 1:
            await reader.readuntil(b"data: ")
        streams = set(engine.running)
        writer.transport.abort()
        await until(lambda: not engine.running)
        assert all(stream.is_cancelled for stream in streams)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_its_request_is_prepared_ends_the_work(
    stream: bool,
) -> None:
    engine = EchoEngine()
    preparing = engine.preparing = Preparing()
    body = json.dumps(chat("abc", stream=stream, n=3)).encode()
    async with serving_http(engine) as address:
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        await until(lambda: preparing.num_waiting == 1)
        writer.transport.abort()
        await until(lambda: preparing.num_waiting == 0)
        assert preparing.num_cancelled == 1
        preparing.go_on.set()
        response = await post(address, "/v1/chat/completions", chat("abc"))
        assert response.status_code == 200
        assert len(engine.specs) == 1, "nothing of the client that left was taken"


async def test_the_end_of_the_coordinator_reaches_every_stream() -> None:
    engine = EchoEngine(delay_s=0.002)
    body = chat("abc", stream=True, max_tokens=4000)
    async with (
        serving_http(engine) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=DEADLINE_S) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        pieces = response.aiter_text()
        text = await anext(pieces)  # it has begun
        await engine.close(grace_s=0.0)
        text += "".join([piece async for piece in pieces])
    assert events_of(text)[-1].chunk["error"]["code"] == "unavailable"
