"""A body of any size is answered as a small one is, and never read in the event loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.request_spec import ChatPrompt, TextPrompt, TokenPrompt
from coordinator.doors.http import body_job, body_workers, openapi
from coordinator.doors.http.body_job import MAX_OTHER_BYTES
from coordinator.doors.http.body_workers import MAX_INLINE_BYTES, BodyWorkers, ByteBudget
from coordinator.doors.http.request_specs import chat_specs, completion_specs, embedding_specs
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.ollama import OllamaEmbeddingsRequest, OllamaEmbedRequest
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest
from stagecoach.contract.errors import DeadlineExceededError, InvalidArgumentError

LONG = "long " * 10_000
IDS = [7, 2**32 - 1] * 10_000


@pytest.fixture
async def bodies() -> AsyncIterator[BodyWorkers]:
    workers = BodyWorkers()
    workers.start()
    yield workers
    await workers.close()


def turn(content: object, **fields: object) -> dict[str, object]:
    return {"role": "user", "content": content} | fields


def call(arguments: str, **fields: object) -> dict[str, object]:
    return {"id": "c", "function": {"name": "f", "arguments": arguments, **fields}}


CHATS: dict[str, dict[str, Any]] = {
    "calls": {
        "messages": [
            turn("a"),
            {
                "role": "assistant",
                "tool_calls": [
                    call(json.dumps({"a": LONG})),
                    call('{"a": ' + LONG, strange=1),
                    {"id": "d", "type": "function", "function": {"name": "g"}},
                ],
            },
            {"role": "tool", "content": "b", "tool_call_id": "c"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "text": {"messages": [turn(LONG), turn("b")], "seed": 3},
    "parts": {"messages": [turn([{"type": "text", "text": "ab"}] * 4000)], "n": 2},
    "advisory fields": {
        "messages": [turn(None, name="x", strange=[1] * 20_000), turn("a", annotations=None)],
        "user": "u",
        "store": True,
    },
    "everything": {
        "messages": [turn(LONG)],
        "max_tokens": 5,
        "stop": ["a", "b"],
        "logit_bias": {"5": 1.5},
        "temperature": 0.5,
        "stop_token_ids": [1, 2],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}},
        },
        "logprobs": True,
        "top_logprobs": 4,
        "metadata": {"a": "b"},
    },
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {"prompt": LONG, "stream": True, "stream_options": {"include_usage": True}},
    "texts": {"prompt": ["a", LONG, "b"], "structured_outputs": {"regex": "a*"}},
    "ids": {"prompt": IDS},
    "lists": {"prompt": [[1], IDS, [2, 3]], "seed": 1},
}


async def both(
    bodies: BodyWorkers, facts: dict[str, Any], kind: type[ModelRequest], monkeypatch: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """What a body becomes in a worker, and in this process."""
    body = json.dumps(facts).encode()
    assert len(body) > MAX_INLINE_BYTES
    large = await bodies.validate(body, kind)
    with monkeypatch.context() as patch:
        patch.setattr(body_workers, "MAX_INLINE_BYTES", len(body))
        return large, await bodies.validate(body, kind)


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "text": {"input": LONG, "dimensions": 4, "user": "u", "encoding_format": "base64"},
    "texts": {"input": ["a", LONG, "b"], "pooling": "mean", "normalize": False},
    "ids": {"input": IDS, "cache_salt": "s"},
    "lists": {"input": [[1], IDS, [2, 3]]},
}


@pytest.mark.parametrize("name", CHATS)
async def test_a_large_conversation_asks_for_what_it_would_ask_for_as_a_small_one(
    bodies: BodyWorkers, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large, ignored), (small, expected) = await both(
        bodies, CHATS[name], ChatCompletionRequest, monkeypatch
    )
    assert chat_specs(large, "r") == chat_specs(small, "r")
    assert ignored == expected
    assert large.metadata == small.metadata


@pytest.mark.parametrize("name", EMBEDDINGS)
async def test_large_inputs_ask_for_what_they_would_ask_for_as_small_ones(
    bodies: BodyWorkers, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large, ignored), (small, expected) = await both(
        bodies, EMBEDDINGS[name], EmbeddingRequest, monkeypatch
    )
    assert ignored == expected
    assert large.encoding_format == small.encoding_format
    for one, other in zip(embedding_specs(large, "r"), embedding_specs(small, "r"), strict=True):
        assert one == other or (
            isinstance(one.prompt, TokenPrompt)
            and isinstance(other.prompt, TokenPrompt)
            and list(one.prompt.token_ids) == list(other.prompt.token_ids)
            and replace(one, prompt=other.prompt) == other
        )


@pytest.mark.parametrize("name", COMPLETIONS)
async def test_large_prompts_ask_for_what_they_would_ask_for_as_small_ones(
    bodies: BodyWorkers, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (large, ignored), (small, expected) = await both(
        bodies, COMPLETIONS[name], CompletionRequest, monkeypatch
    )
    assert ignored == expected
    assert large.stream_options == small.stream_options
    found, wanted = completion_specs(large, "r"), completion_specs(small, "r")
    assert [len(choices) for choices in found] == [len(choices) for choices in wanted]
    for (one, *_), (other, *_) in zip(found, wanted, strict=True):
        assert one.sampling == other.sampling
        assert one.grammar == other.grammar
        if isinstance(one.prompt, TokenPrompt):
            assert isinstance(other.prompt, TokenPrompt)
            assert tuple(one.prompt.token_ids) == tuple(other.prompt.token_ids)
        else:
            assert isinstance(one.prompt, TextPrompt | ChatPrompt)
            assert one.prompt == other.prompt


async def test_large_texts_and_ids_are_read_whole(bodies: BodyWorkers) -> None:
    text = json.dumps({"prompt": LONG, "model": "m"}).encode()
    wanted, _ = await bodies.validate(text, TokenizeRequest)
    assert (wanted.prompt, wanted.model, wanted.messages) == (LONG, "m", None)
    chat = json.dumps({"messages": [turn(LONG)]}).encode()
    told, _ = await bodies.validate(chat, TokenizeRequest)
    assert told.prompt is None
    assert told.messages is not None
    assert [one.content for one in told.messages] == [LONG]
    ids, _ = await bodies.validate(json.dumps({"tokens": IDS}).encode(), DetokenizeRequest)
    assert list(ids.tokens) == IDS


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"messages":[' + b",".join([b"{}"] * 300_000) + b"]}", ChatCompletionRequest),
        (b'{"messages":[' + b"7," * 300_000 + b"7]}", ChatCompletionRequest),
        (b'{"prompt":["a"' + b",7" * 300_000 + b"]}", CompletionRequest),
        (
            b'{"prompt":[' + b",".join([b'[""]'] * 100) + b"]" + b" " * 40_000 + b"}",
            CompletionRequest,
        ),
        (b'{"prompt":' + b"[" * 40_000 + b"]" * 40_000 + b"}", CompletionRequest),
        (b'{"prompt":"a","logit_bias":{"a":1' + b',"b":2' * 9000 + b"}}", CompletionRequest),
        (b'{"prompt":"' + b"a" * 40_000, CompletionRequest),
        (b'{"prompt":"a","n":500,"user":"' + b"a" * 40_000 + b'"}', CompletionRequest),
        (b"\xff" * 40_000, DetokenizeRequest),
        (b'{"tokens":[' + b"-1," * 40_000 + b"1]}", DetokenizeRequest),
    ],
)
async def test_what_is_wrong_with_a_large_body_is_said_as_of_a_small_one(
    bodies: BodyWorkers, body: bytes, kind: type[ModelRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await bodies.validate(body, kind)
    monkeypatch.setattr(body_workers, "MAX_INLINE_BYTES", len(body))
    with pytest.raises(InvalidArgumentError) as expected:
        await bodies.validate(body, kind)
    assert caught.value.message == expected.value.message
    assert caught.value.field == expected.value.field


async def test_what_stands_beside_the_prompt_has_a_limit(bodies: BodyWorkers) -> None:
    body = json.dumps({"messages": [turn("a")], "model": "m" * MAX_OTHER_BYTES}).encode()
    with pytest.raises(InvalidArgumentError, match="model and the other fields") as caught:
        await bodies.validate(body, ChatCompletionRequest)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"metadata": {"a": [[]] * 10_000}}, "metadata"),
        ({"metadata": {f"a{index}": [1.5] * 3 for index in range(5_000)}}, "metadata"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"default": [[]] * 20_000}},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": {"default": [[]] * 20_000}}}, "structured_outputs.json"),
    ],
    ids=["lists", "numbers", "schema", "structured"],
)
async def test_what_takes_the_loop_long_is_refused_before_it_reads_it(
    bodies: BodyWorkers, fields: dict[str, Any], field: str
) -> None:
    """The worker's answer is read on the loop: 225 kB of lists took it a tenth of a second."""
    body = json.dumps({"messages": [turn("a")], **fields}).encode()
    assert MAX_INLINE_BYTES < len(body) < MAX_OTHER_BYTES
    answer = body_job.prepare(b"")(body_job.encode_call(body, ChatCompletionRequest))
    assert len(answer) < 1_000
    with pytest.raises(InvalidArgumentError) as caught:
        await bodies.validate(body, ChatCompletionRequest)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field} has ")


async def test_a_body_that_takes_too_long_is_given_up(
    bodies: BodyWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_workers, "_TIMEOUT_S", 0.001)
    monkeypatch.setattr(body_workers, "_BYTES_PER_S", 1e12)
    body = b'{"prompt":["a"' + b',"7"' * 300_000 + b"]}"
    with pytest.raises(DeadlineExceededError, match=r"bytes were not read within 0\.0 s"):
        await bodies.validate(body, CompletionRequest)


async def test_large_bodies_are_held_in_order_and_within_the_budget() -> None:
    budget = ByteBudget(10)
    running: list[str] = []
    go_on = {name: asyncio.Event() for name in "abcd"}

    async def hold(name: str, num_bytes: int) -> None:
        async with budget.hold(num_bytes):
            running.append(name)
            await go_on[name].wait()
        running.remove(name)

    async def settled() -> list[str]:
        for _ in range(5):
            await asyncio.sleep(0)
        return running

    tasks = {
        name: asyncio.create_task(hold(name, size))
        for name, size in (("a", 6), ("b", 5), ("c", 100), ("d", 4))
    }
    assert await settled() == ["a"]
    go_on["a"].set()
    assert await settled() == ["b"]
    tasks["c"].cancel()  # it waits for all of them, and `d` for it
    with suppress(asyncio.CancelledError):
        await tasks["c"]
    assert await settled() == ["b", "d"]
    go_on["b"].set()
    go_on["d"].set()
    assert await settled() == []
    async with budget.hold(10):
        pass


def test_a_large_body_of_every_route_can_be_read() -> None:
    assert set(body_job._KINDS.values()) == set(openapi._REQUESTS)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (OllamaEmbedRequest, {"input": LONG}),
        (OllamaEmbedRequest, {"input": ["a", LONG, "b"]}),
        (OllamaEmbeddingsRequest, {"prompt": LONG}),
    ],
)
async def test_a_large_text_for_a_vector_of_ollamas_is_what_it_would_be_as_a_small_one(
    bodies: BodyWorkers,
    kind: type[ModelRequest],
    content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large, small = await both(bodies, {"model": "m", **content}, kind, monkeypatch)
    assert large == small
