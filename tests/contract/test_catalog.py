"""Two models behind both doors of one process: each request reaches the model that it names."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest

from coordinator.cli.watch.sampler import ClusterSampler
from coordinator.core.catalog import Catalog
from coordinator.doors.access.api_key import new_key
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.engine.engines import Engines
from stagecoach.client import (
    AsyncClient,
    InvalidArgumentError,
    ModelNotFoundError,
    QueueFullError,
    UnavailableError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.status import from_rpc_error
from stagecoach.v1 import generation_pb2, generation_pb2_grpc
from tests.clusters import generate, running_engine
from tests.contract.catalogs import open_catalog
from tests.contract.echo_engine import EchoEngine, bound, serving
from tests.contract.http_door import events_of, serving_http
from tests.tiny_models import tiny_model

DEADLINE_S = 90.0
ALICE = new_key("alice")


class Process:
    """Two models, and clients of both doors of the process that serves them."""

    def __init__(self, client: AsyncClient, http: httpx2.AsyncClient) -> None:
        self.client = client
        self.http = http


@pytest.fixture
def large() -> EchoEngine:
    return EchoEngine(names=("large", "org/large"), begin=(1,))


@pytest.fixture
def small() -> EchoEngine:
    return EchoEngine(names=("small",), begin=(2,), max_model_len=64)


@pytest.fixture
async def process(large: EchoEngine, small: EchoEngine) -> AsyncIterator[Process]:
    async with (
        serving(large, small) as address,
        serving_http(large, small) as http_address,
        AsyncClient(address) as client,
        httpx2.AsyncClient(base_url=f"http://{http_address}", trust_env=False) as http,
    ):
        yield Process(client, http)


def num_requests(*engines: EchoEngine) -> list[int]:
    return [len(engine.specs) for engine in engines]


async def test_over_grpc_each_request_reaches_its_model_by_each_of_its_names(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    for model in ("large", "org/large", "small"):
        done = await process.client.complete("ab", model=model, max_tokens=1)
        assert done.token_ids == ((2,) if model == "small" else (1,))
    assert num_requests(large, small) == [2, 1]


async def test_over_grpc_each_model_tokenizes(process: Process) -> None:
    assert await process.client.tokenize("ab", model="org/large") == [1, 97, 98]
    assert await process.client.tokenize("ab", model="small") == [2, 97, 98]


async def test_over_grpc_each_model_has_its_own_steps(process: Process) -> None:
    async with await process.client.watch_steps(model="small", timeout_s=DEADLINE_S) as watch:
        await process.client.complete("a", model="large", max_tokens=1)
        await process.client.complete("abcd", model="small", max_tokens=1)
        assert (await anext(watch)).num_prefill_tokens == 5
    with pytest.raises(InvalidArgumentError, match="name one of 'large', 'org/large', 'small'"):
        await process.client.watch_steps(timeout_s=DEADLINE_S)


async def test_a_terminal_that_watches_hears_of_the_steps_of_each_model(process: Process) -> None:
    """It named no model, and so was told of none."""
    sampler = ClusterSampler(process.client, interval_s=1.0)
    listening = asyncio.create_task(sampler.listen())
    try:
        async with asyncio.timeout(DEADLINE_S):
            activities = (await sampler.sample()).activities
            while not any(activities):
                await process.client.complete("ab", model="small", max_tokens=1)
                activities = (await sampler.sample()).activities
    finally:
        listening.cancel()
        await asyncio.wait({listening})
    assert list(map(len, activities)) == [0, 2]


async def test_over_grpc_a_model_that_is_not_served_is_not_found(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    message = "the model 'huge' is not served here; 'large', 'org/large', 'small' are"
    for refused in (
        process.client.complete("ab", model="huge"),
        process.client.tokenize("ab", model="huge"),
        process.client.watch_steps(model="huge", timeout_s=DEADLINE_S),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            await refused
        assert (caught.value.message, caught.value.field) == (message, "model")
    assert num_requests(large, small) == [0, 0]


async def test_over_grpc_the_code_of_a_model_that_is_not_served_is_not_found() -> None:
    request = generation_pb2.TokenizeRequest(model="huge", prompt=generation_pb2.Prompt(text="a"))
    async with serving(EchoEngine()) as address, grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Tokenize(request, timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(caught.value)
    assert error.message == "the model 'huge' is not served here; 'echo' is"
    assert error.details == {"field": "model"}


async def test_over_grpc_a_request_has_to_name_one_of_two_models(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    for refused in (process.client.complete("ab"), process.client.tokenize("ab")):
        with pytest.raises(InvalidArgumentError) as caught:
            await refused
        assert type(caught.value) is InvalidArgumentError
        assert caught.value.field == "model"
        assert caught.value.message == (
            "model is not given, and 2 are served: name one of 'large', 'org/large', 'small'"
        )
    assert num_requests(large, small) == [0, 0]


async def test_the_status_shows_both_models_over_both_doors(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    status = await process.client.status()
    assert [model.names for model in status.models] == [("large", "org/large"), ("small",)]
    assert [model.max_model_len for model in status.models] == [4096, 64]
    assert [len(model.stages) for model in status.models] == [2, 2]
    assert (status.names, status.max_model_len) == (("large", "org/large"), 4096)
    shown = (await process.http.get("/status")).json()
    assert [model["names"] for model in shown["models"]] == [["large", "org/large"], ["small"]]
    assert shown["max_model_len"] == 4096
    assert status.ready
    small.is_ready = False
    status = await process.client.status()
    assert [model.state for model in status.models] == ["serving", "loading"]
    assert [model.problem for model in status.models] == ["", "stage h:2 was lost"]
    assert not status.ready
    shown = (await process.http.get("/status")).json()
    assert [model["state"] for model in shown["models"]] == ["serving", "loading"]
    assert [model["problem"] for model in shown["models"]] == [None, "stage h:2 was lost"]


async def test_a_process_is_ready_while_one_of_its_models_is(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    """A model that is away keeps no traffic from another."""
    for engine, code in ((small, 200), (large, 503)):
        engine.is_ready = False
        assert (await process.http.get("/ready")).status_code == code
    small.is_ready = True
    assert (await process.http.get("/ready")).status_code == 200


async def test_over_http_both_models_are_listed_and_described(process: Process) -> None:
    cards = (await process.http.get("/v1/models")).json()["data"]
    listed = [(card["id"], card["max_model_len"]) for card in cards]
    assert listed == [("large", 4096), ("org/large", 4096), ("small", 64)]
    for card in cards:
        assert (await process.http.get(f"/v1/models/{card['id']}")).json() == card
    assert (await process.http.get("/v1/models/huge")).status_code == 404


def chat(model: str | None, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": model, "messages": messages, "max_tokens": 2, **fields}


async def test_over_http_each_request_reaches_its_model_and_the_answer_names_it(
    process: Process, large: EchoEngine, small: EchoEngine
) -> None:
    for model, first in (("org/large", "large"), ("small", "small")):
        done = await process.http.post("/v1/chat/completions", json=chat(model))
        assert done.json()["model"] == first
        streamed = await process.http.post("/v1/chat/completions", json=chat(model, stream=True))
        chunks = events_of(streamed.text)[:-1]
        assert {event.chunk["model"] for event in chunks} == {first}
        body = {"model": model, "prompt": "ab", "max_tokens": 1}
        assert (await process.http.post("/v1/completions", json=body)).json()["model"] == first
    assert num_requests(large, small) == [3, 3]


async def test_over_http_each_model_tokenizes(process: Process) -> None:
    for model, begin, max_model_len in (("large", 1, 4096), ("small", 2, 64)):
        body: dict[str, Any] = {"model": model, "prompt": "ab"}
        answer = (await process.http.post("/tokenize", json=body)).json()
        assert (answer["tokens"], answer["max_model_len"]) == ([begin, 97, 98], max_model_len)
        body = {"model": model, "tokens": [97, 98]}
        assert (await process.http.post("/detokenize", json=body)).json() == {"prompt": "ab"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(None)),
        ("/v1/chat/completions", chat("")),
        ("/v1/completions", {"prompt": "ab"}),
        ("/tokenize", {"prompt": "ab"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
async def test_over_http_a_request_has_to_name_one_of_two_models(
    process: Process, large: EchoEngine, small: EchoEngine, path: str, body: dict[str, Any]
) -> None:
    refused = await process.http.post(path, json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("model", "invalid_value")
    assert error["message"].endswith("name one of 'large', 'org/large', 'small'")
    missing = await process.http.post(path, json={**body, "model": "huge"})
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert num_requests(large, small) == [0, 0]


async def test_over_http_the_tokenizer_is_that_of_the_named_model(process: Process) -> None:
    for query, status in (("", 400), ("?model=huge", 404), ("?model=small", 404)):
        answer = await process.http.get(f"/tokenizer_info{query}")
        assert answer.status_code == status
        code = {"": "invalid_value", "?model=huge": "model_not_found"}.get(query, "not_found")
        assert answer.json()["error"]["code"] == code


async def test_whether_names_of_speakers_are_read_is_asked_of_each_model(
    process: Process, small: EchoEngine
) -> None:
    small.shows_names = True
    named = [{"role": "user", "content": "Hi", "name": "Ada"}]
    for model, ignored in (("large", "messages[0].name"), ("small", None)):
        body = chat(model, messages=named)
        answer = await process.http.post("/v1/chat/completions", json=body)
        assert answer.headers.get("x-stagecoach-ignored") == ignored


async def test_a_caller_has_one_share_of_all_models() -> None:
    large, small = EchoEngine(names=("large",)), EchoEngine(names=("small",))
    callers, shares = Callers.of_text(ALICE.line), CallerShares(max_requests=2)
    async with (
        serving(large, small, callers=callers, shares=shares) as address,
        AsyncClient(address, api_key=ALICE.key) as alice,
    ):
        streams = [alice.generate("ab", model=model) for model in ("large", "small")]
        for stream in streams:
            await anext(stream)
        for model in ("large", "small"):
            with pytest.raises(QueueFullError, match="'alice' has 2 requests at once"):
                await alice.complete("ab", model=model, max_tokens=1)
        salts = {engine.specs[0].cache_salt for engine in (large, small)}
        assert len(salts) == 1
        assert None not in salts
        for stream in streams:
            stream.close()


async def test_stopping_closes_every_engine(large: EchoEngine, small: EchoEngine) -> None:
    async with bound() as server:
        await server.serve(large, small)
        await server.stop(grace_s=0)
    assert large.is_closed
    assert small.is_closed


async def test_readiness_is_of_any_model_and_can_be_waited_for(
    large: EchoEngine, small: EchoEngine
) -> None:
    engines = Engines([large, small])
    assert engines.is_ready
    await engines.wait_ready(ready=True)
    waiting = asyncio.create_task(engines.wait_ready(ready=False))
    small.is_ready = False
    await asyncio.sleep(0)
    assert engines.is_ready, "the large one is"
    large.is_ready = False
    await waiting
    assert not engines.is_ready
    large.is_ready = True
    await engines.wait_ready(ready=True)


def test_an_empty_catalog_says_what_is_waited_for() -> None:
    catalog = Catalog()
    assert not catalog.is_open
    assert not catalog.is_ready
    listed = catalog.add()
    listed.loading("stage h:1 loads")
    for ask in (catalog.process, catalog.models, lambda: catalog.engine("m")):
        with pytest.raises(UnavailableError, match="is starting: stage h:1 loads"):
            ask()


def test_each_model_of_a_catalog_is_in_its_own_state(large: EchoEngine, small: EchoEngine) -> None:
    catalog = Catalog()
    first, second, third = (catalog.add((name,)) for name in ("large", "small", "bad"))
    second.loading("stage h:1 loads")
    third.fail("bad has no config.json")
    with pytest.raises(UnavailableError) as starting:
        catalog.engine("nobody")
    assert starting.value.message == (
        "the coordinator is starting: model 'large': it waits for its stages; "
        "model 'small': stage h:1 loads; model 'bad': bad has no config.json"
    )
    first.open(large)
    catalog.open(Engines([large]))
    assert catalog.engine("org/large") is large, "its engine tells more names"
    for name, why in (
        ("small", "the model 'small' is starting: stage h:1 loads"),
        ("bad", "the model 'bad' cannot be served: bad has no config.json"),
    ):
        with pytest.raises(UnavailableError) as refused:
            catalog.engine(name)
        assert refused.value.message == why
    with pytest.raises(ModelNotFoundError, match="'large', 'org/large', 'small', 'bad' are"):
        catalog.engine("nobody")
    with pytest.raises(InvalidArgumentError, match="3 are served"):
        catalog.engine(None)
    second.open(small)
    assert catalog.engine("small") is small
    assert [model.state for model in catalog.models()] == ["serving", "serving", "failed"]
    large.is_ready = False
    assert [model.state for model in catalog.models()] == ["loading", "serving", "failed"]
    assert first.problem == "stage h:2 was lost"
    assert catalog.engine("large") is large, "requests wait"


async def test_two_models_of_one_name_are_refused(large: EchoEngine) -> None:
    other = EchoEngine(names=("other", "org/large"))
    catalog = Catalog()
    with pytest.raises(InvalidArgumentError, match="'org/large' is of two models"):
        open_catalog(catalog, [large, other])
    assert not catalog.is_open


async def test_two_real_models_in_one_process_answer_with_their_own_tokens(tmp_path: Path) -> None:
    """Names are those that the operator gave, or else the model's own."""
    prompt, whole = [5, 6, 7], [LayerRange(0, 6)]
    named, unnamed = (tiny_model(family, tmp_path) for family in ("llama", "mistral"))
    async with (
        running_engine(named, whole, coordinator={"served_model_names": ("a", "b")}) as first,
        running_engine(unnamed, whole) as second,
        serving(first, second) as address,
        AsyncClient(address) as client,
    ):
        expected = [await generate(engine, prompt, 8) for engine in (first, second)]
        assert expected[0] != expected[1]
        for model, token_ids in (("b", expected[0]), (unnamed.name, expected[1])):
            done = await client.complete(prompt, model=model, max_tokens=8, ignore_eos=True)
            assert list(done.token_ids) == token_ids
        models = (await client.status()).models
        assert [model.names for model in models] == [("a", "b"), (unnamed.name,)]
        assert [model.model_id for model in models] == [named.name, unnamed.name]
