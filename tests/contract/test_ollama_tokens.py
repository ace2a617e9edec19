"""Embeddings, log-probabilities and names with a tag, as Ollama's clients ask for them."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from coordinator.core.events import TokenLogprobs
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import DEADLINE_S, serving_http

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "options": {"num_predict": 3},
}


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(names=["echo", "tagged:latest"])


@pytest.fixture
async def client(engine: EchoEngine) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving_http(engine) as address,
        httpx2.AsyncClient(base_url=f"http://{address}/api", timeout=DEADLINE_S) as found,
    ):
        yield found


async def answered(client: httpx2.AsyncClient, path: str, **fields: Any) -> Any:
    response = await client.post(f"/{path}", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("several", [False, True])
async def test_texts_become_vectors_of_length_1(client: httpx2.AsyncClient, several: bool) -> None:
    answer = await answered(client, "embed", model="echo", input=["ab", "c"] if several else "ab")
    assert len(answer["embeddings"]) == (2 if several else 1)
    for vector in answer["embeddings"]:
        assert math.hypot(*vector) == pytest.approx(1)
    assert (answer["model"], answer["load_duration"]) == ("echo", 0)
    assert answer["prompt_eval_count"] == (3 if several else 2)
    assert answer["total_duration"] > 0


async def test_vectors_are_those_of_openais_route(client: httpx2.AsyncClient) -> None:
    fields = {"model": "echo", "input": ["ab", "c"], "dimensions": 5}
    answer = await answered(client, "embed", **fields, truncate=True, keep_alive="5m")
    other = (await client.post("../v1/embeddings", json=fields)).json()
    assert answer["embeddings"] == [one["embedding"] for one in other["data"]]


async def test_a_vector_of_the_older_route_has_the_length_that_it_has(
    client: httpx2.AsyncClient,
) -> None:
    [byte] = b"c"
    answer = await answered(client, "embeddings", model="echo", prompt="c")
    assert answer == {"embedding": [float(byte >> bit & 1) for bit in range(8)]}


async def test_no_text_becomes_no_vector(client: httpx2.AsyncClient) -> None:
    assert (await answered(client, "embed", model="echo", input=[]))["embeddings"] == []


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("embed", {"input": 1}, "input: must be a text or a list of texts"),
        ("embed", {"input": ["a", ""]}, "input[1]"),
        ("embed", {"input": "a", "dimensions": -1}, "dimensions: "),
        ("embed", {"input": ["a", "b" * 5000]}, "input[1]: "),
        ("embeddings", {"prompt": 1}, "prompt: Input should be a valid string"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx2.AsyncClient, path: str, fields: dict[str, Any], message: str
) -> None:
    response = await client.post(f"/{path}", json={"model": "echo", **fields})
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("num_top", [0, 1])
async def test_each_token_has_its_log_probability(
    client: httpx2.AsyncClient, engine: EchoEngine, num_top: int
) -> None:
    engine.logprobs = TokenLogprobs(-0.5, [(65, -0.25)][:num_top])
    asked = {**CHAT, "logprobs": True, "top_logprobs": num_top}
    whole = await answered(client, "chat", **asked, stream=False)
    lines = [
        json.loads(line)
        for line in (await client.post("/chat", json=asked)).text.split("\n")
        if line
    ]
    assert engine.specs[0].logprobs == num_top
    assert [one["token"] for one in whole["logprobs"]] == ["u", "s", "e"]
    top = [{"token": "A", "logprob": -0.25, "bytes": [65]}]
    first = {"token": "u", "logprob": -0.5, "bytes": [117]}
    assert whole["logprobs"][0] == (first | {"top_logprobs": top} if num_top else first)
    assert [one for line in lines for one in line.get("logprobs", ())] == whole["logprobs"]
    engine.logprobs = None
    assert "logprobs" not in await answered(client, "chat", **CHAT, stream=False)


@pytest.mark.parametrize("name", ["echo", "echo:latest", "tagged:latest"])
async def test_a_name_may_have_the_tag_latest(client: httpx2.AsyncClient, name: str) -> None:
    assert (await answered(client, "chat", model=name, **CHAT, stream=False))["model"] == "echo"
    assert "capabilities" in await answered(client, "show", model=name)
    assert await answered(client, "embed", model=name, input="a")


@pytest.mark.parametrize("name", ["tagged", "echo:8b", ":latest"])
async def test_a_name_that_no_model_has_is_refused_as_it_was_written(
    client: httpx2.AsyncClient, name: str
) -> None:
    response = await client.post("/chat", json={"model": name, **CHAT})
    assert response.status_code == 404
    assert repr(name) in response.json()["error"]
    other = await client.post("../v1/chat/completions", json={"model": "echo:latest", **CHAT})
    assert other.status_code in (400, 404)
