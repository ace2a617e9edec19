"""`/v1/embeddings`, `Embed` and the SDK's `embed` in front of an engine, at the edges."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc.aio
import httpx2
import pytest

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.request_spec import RequestSpec, TextPrompt, TokenPrompt
from coordinator.doors import embedding
from coordinator.doors.http import held_logprobs
from stagecoach.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    IncompatibleError,
    InvalidArgumentError,
    PromptLike,
    QueueFullError,
    RequestAbortedError,
    UnavailableError,
)
from stagecoach.client import embedding as client_embedding
from stagecoach.contract.errors import ContextLengthExceededError
from stagecoach.contract.status import from_rpc_error
from stagecoach.v1 import generation_pb2
from tests.contract.echo_engine import EchoEngine, serving
from tests.contract.http_door import serving_http
from tests.contract.test_access import ALICE, Doors, doors  # noqa: F401 - a fixture
from tests.contract.test_generation_client import BackgroundServer
from tests.contract.test_generation_service import FIELD_100, open_stub, until
from tests.contract.test_http_stream import post

DEADLINE_S = 60.0
PATH = "/v1/embeddings"
BITS_OF_A = [1.0, 0, 0, 0, 0, 1, 1, 0]
BITS_OF_B = [0.0, 1, 0, 0, 0, 1, 1, 0]
"""Of "a" and "b", the lowest first, which is what the engine makes of them."""


def length_one(values: list[float]) -> Any:
    norm = sum(value * value for value in values) ** 0.5
    return pytest.approx([value / norm for value in values], rel=1e-6)


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
async def address(engine: EchoEngine) -> AsyncIterator[str]:
    async with serving_http(engine) as found:
        yield found


async def test_the_answer_is_openais_object_and_nothing_more(address: str) -> None:
    answer = await post(address, PATH, {"input": ["a", "ab"], "model": "echo"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": length_one(BITS_OF_A)},
            {"object": "embedding", "index": 1, "embedding": length_one(BITS_OF_B)},
        ],
        "model": "echo",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", [TextPrompt(text="ab")]),
        (["ab", "c"], [TextPrompt(text="ab"), TextPrompt(text="c")]),
        ([97, 98], [TokenPrompt(token_ids=(97, 98))]),
        ([[97], [98, 99]], [TokenPrompt(token_ids=(97,)), TokenPrompt(token_ids=(98, 99))]),
    ],
)
async def test_all_four_forms_of_input_are_taken(
    address: str, engine: EchoEngine, given: object, expected: list[object]
) -> None:
    answer = await post(address, PATH, {"input": given})
    assert [one["index"] for one in answer.json()["data"]] == [*range(len(expected))]
    assert [spec.prompt for spec in engine.specs] == expected
    assert {spec.max_tokens for spec in engine.specs} == {0}


async def test_every_field_reaches_the_engine(address: str, engine: EchoEngine) -> None:
    await post(address, PATH, {"input": "a"})
    fields = {
        "pooling": "mean",
        "normalize": False,
        "dimensions": 3.0,
        "add_special_tokens": False,
        "cache_salt": "s",
    }
    answer = await post(address, PATH, {"input": "ab", **fields})
    assert answer.json()["data"][0]["embedding"] == [0.5, 0.5, 0.0]
    plain, special = engine.specs
    assert plain.embedding == EmbeddingParams()
    assert special == RequestSpec(
        prompt=TextPrompt(text="ab", add_special_tokens=False),
        max_tokens=0,
        request_id=special.request_id,
        cache_salt="s",
        embedding=EmbeddingParams(pooling=Pooling.MEAN, normalize=False, dimensions=3),
    )


async def test_base64_holds_the_same_numbers(address: str) -> None:
    fields = {"input": ["ab", "xyz"], "pooling": "mean"}
    numbers = (await post(address, PATH, {**fields, "encoding_format": "float"})).json()["data"]
    coded = (await post(address, PATH, {**fields, "encoding_format": "base64"})).json()["data"]
    for one, other in zip(numbers, coded, strict=True):
        assert list(struct.unpack("<8f", base64.b64decode(other["embedding"]))) == one["embedding"]


async def test_fields_that_change_nothing_are_taken_and_named(address: str) -> None:
    fields = {"user": "u", "priority": 3, "truncate": False, "input_type": None, "unknown": None}
    answer = await post(address, PATH, {"input": "a", "encoding_format": None, **fields})
    assert answer.status_code == 200
    named = answer.headers["x-stagecoach-ignored"].split(", ")
    assert sorted(named) == ["priority", "unknown", "user"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "input: Field required"),
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ["a", ""]}, "input[1]", "at least 1 character"),
        ({"input": [[1], []]}, "input[1]", "at least 1 item"),
        ({"input": 5}, "input", "must be a text or token ids, or a list of"),
        ({"input": [1, "a"]}, "input[1]", "valid integer"),
        ({"input": [-1]}, "input[0]", "greater than or equal to 0"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 items"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "pooling": "cls"}, "pooling", "'last' or 'mean'"),
        ({"input": "a", "truncate": True}, "truncate", "is not supported"),
        ({"input": "a", "input_type": "query"}, "input_type", "is not supported"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name", "is not a field of this request"),
        ({"input": "a", "cache_salt": ""}, "cache_salt", "at least 1 character"),
    ],
)
async def test_what_changes_the_answer_and_is_not_served_is_refused_by_name(
    address: str, engine: EchoEngine, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = await post(address, PATH, fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param)
    assert message in error["message"]
    assert engine.specs == []


@pytest.mark.parametrize(
    ("given", "item"), [("x" * 5000, "input"), (["a", "x" * 5000], "input[1]")]
)
async def test_an_input_that_is_too_long_is_named(address: str, given: object, item: str) -> None:
    answer = await post(address, PATH, {"input": given})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == item


async def test_more_texts_than_may_wait_are_answered_in_their_order(
    address: str, engine: EchoEngine
) -> None:
    texts = [chr(97 + i % 26) * (1 + i % 3) for i in range(200)]
    answer = await post(address, PATH, {"input": texts, "normalize": False})
    found = [one["embedding"] for one in answer.json()["data"]]
    assert found == [[float(ord(text[-1]) >> bit & 1) for bit in range(8)] for text in texts]
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert engine.running == set()


async def test_no_more_prompts_are_with_the_engine_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "MAX_AT_ONCE", 3)
    engine = EchoEngine(delay_s=0.01)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(engine.running))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with serving_http(engine) as address:
        answer = await post(address, PATH, {"input": ["a"] * 10})
    watching.cancel()
    assert len(answer.json()["data"]) == 10
    assert most == 3


async def test_where_others_take_all_the_room_it_is_refused(engine: EchoEngine) -> None:
    engine.max_running = 0
    async with serving_http(engine) as address:
        answer = await post(address, PATH, {"input": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")


@pytest.mark.parametrize("num_taken", [0, 2])
async def test_one_that_fails_ends_all_with_its_error(num_taken: int, engine: EchoEngine) -> None:
    engine.delay_s = 30.0
    async with serving_http(engine) as address:
        answering = asyncio.create_task(
            post(address, PATH, {"input": ["a"] * num_taken + ["x" * 5000]})
        )
        answer = await asyncio.wait_for(answering, DEADLINE_S)
        assert answer.status_code == 400
        await until(lambda: not engine.running)


async def test_a_client_that_leaves_ends_all_of_its_requests(engine: EchoEngine) -> None:
    engine.delay_s = 30.0
    async with serving_http(engine) as address:
        answering = asyncio.create_task(post(address, PATH, {"input": ["a"] * 5}))
        await until(lambda: len(engine.running) == 5)
        answering.cancel()
        await until(lambda: not engine.running)


async def test_what_whole_answers_hold_is_bounded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_logprobs, "MAX_HELD_BYTES", 3 * 8 * 4)
    for _ in range(2):
        large = await post(address, PATH, {"input": ["a"] * 4})
        assert large.status_code == 429
        assert "may be held at once" in large.json()["error"]["message"]
        assert (await post(address, PATH, {"input": ["a"] * 3})).status_code == 200


async def test_a_body_may_have_many_texts_whatever_the_length_of_one(engine: EchoEngine) -> None:
    engine.max_model_len = 1000
    texts = ["x" * 900] * 2000  # 1.8 MB, more than a prompt of 1000 tokens may have
    async with serving_http(engine) as address:
        answer = await post(address, PATH, {"input": texts, "dimensions": 1})
    assert len(answer.json()["data"]) == 2000


@pytest.mark.parametrize("path", ["/embeddings", "/v1/v1/embeddings", "/v1/embeddings/"])
async def test_paths_that_clients_get_wrong_lead_there(address: str, path: str) -> None:
    assert (await post(address, path, {"input": "a"})).status_code == 200


async def test_a_key_with_few_requests_at_once_embeds_many_texts(doors: Doors) -> None:  # noqa: F811
    """Its share is 2 requests."""
    async with doors.client(ALICE.key) as alice:
        assert len(await alice.embed(["a"] * 20)) == 20
        headers = {"authorization": f"Bearer {ALICE.key}"}
        async with httpx2.AsyncClient(trust_env=False, headers=headers) as http:
            answer = await http.post(f"{doors.http}{PATH}", json={"input": ["a"] * 20})
            assert len(answer.json()["data"]) == 20
        assert (await alice.complete("ab", max_tokens=1)).text == "a"
    assert len({spec.cache_salt for spec in doors.engine.specs}) == 1
    assert doors.engine.specs[0].cache_salt is not None


# Over gRPC, and in the SDK.


@pytest.fixture
async def grpc_address(engine: EchoEngine) -> AsyncIterator[str]:
    async with serving(engine) as found:
        yield found


@pytest.fixture
async def client(grpc_address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(grpc_address) as found:
        yield found


async def test_the_sdk_embeds_prompts_of_all_forms(client: AsyncClient, engine: EchoEngine) -> None:
    chat = [{"role": "user", "content": "b"}]
    found = await client.embed(["a", [97, 98], chat, "a" * 5])
    assert [one.num_prompt_tokens for one in found] == [1, 2, len("user: b\n"), 5]
    assert [one.num_cached_tokens for one in found] == [0, 1, len("user: b\n") - 1, 4]
    assert list(found[0].values) == length_one(BITS_OF_A)
    assert list(found[1].values) == length_one(BITS_OF_B)
    assert memoryview(cast("bytes", found[0].values)).format == "f"
    assert [spec.embedding for spec in engine.specs] == [EmbeddingParams()] * 4


async def test_a_text_alone_is_one_prompt(client: AsyncClient) -> None:
    [one] = await client.embed("ab")
    assert list(one.values) == length_one(BITS_OF_B)


async def test_options_reach_the_engine(client: AsyncClient, engine: EchoEngine) -> None:
    [one] = await client.embed(
        ["ab"],
        pooling="mean",
        normalize=False,
        dimensions=3,
        cache_salt="s",
        model="echo",
        timeout_s=DEADLINE_S,
        add_special_tokens=False,
    )
    assert list(one.values) == [0.5, 0.5, 0.0]
    [spec] = engine.specs
    assert spec == RequestSpec(
        prompt=TextPrompt(text="ab", add_special_tokens=False),
        max_tokens=0,
        cache_salt="s",
        embedding=EmbeddingParams(pooling=Pooling.MEAN, normalize=False, dimensions=3),
    )


async def test_many_prompts_go_in_several_calls_and_come_in_their_order(
    client: AsyncClient, engine: EchoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_embedding, "_MAX_CALL_BYTES", 64)
    texts = [chr(97 + i) * (1 + i) for i in range(26)] + ["z" * 300]
    found = await client.embed(texts)
    assert [one.num_prompt_tokens for one in found] == [*range(1, 27), 300]
    with pytest.raises(ContextLengthExceededError) as caught:
        await client.embed([*texts, "x" * 5000])
    assert caught.value.details["field"] == "prompts[27]"


def test_the_synchronous_client_is_the_same() -> None:
    with BackgroundServer(EchoEngine()) as server, Client(server.address) as client:
        found = client.embed(["a", "ab"], dimensions=6, timeout_s=DEADLINE_S)
        assert list(found[1].values) == length_one(BITS_OF_B[:6])
        with pytest.raises(InvalidArgumentError, match=r"prompts\[1\]") as caught:
            client.embed(["a", ""])
        assert caught.value.field.startswith("prompts[1]")
        server.engine.delay_s = 30.0
        with pytest.raises(DeadlineExceededError):
            client.embed("a", timeout_s=0.2)
    with pytest.raises(RequestAbortedError, match="the client is closed"):
        client.embed("a")


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ([], {}, "prompts"),
        ([5], {}, "prompts[0]"),
        (["a", []], {}, "prompts[1]"),
        (["a"], {"pooling": "cls"}, "pooling"),
        (["a"], {"normalize": "yes"}, "normalize"),
        (["a"], {"dimensions": -1}, "dimensions"),
        (["a"], {"dimensions": 0}, "dimensions"),
        (["a"], {"add_generation_prompt": True}, "add_generation_prompt"),
        (["a"], {"timeout_s": 0}, "timeout_s"),
        (["a", ""], {}, "prompts[1]"),
        (["a"], {"cache_salt": ""}, "cache_salt"),
    ],
)
async def test_a_wrong_argument_is_named(
    client: AsyncClient, prompts: list[PromptLike], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.embed(prompts, **options)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda request: request.MergeFromString(FIELD_100), "EmbedRequest"),
        (lambda request: request.prompts[0].MergeFromString(FIELD_100), "prompts[0]"),
        (lambda request: request.prompts.add(), "prompts[1]"),
        (lambda request: request.ClearField("prompts"), "prompts"),
        (lambda request: request.prompts.extend(2048 * [request.prompts[0]]), "prompts"),
        (lambda request: setattr(request, "pooling", 7), "pooling"),
    ],
)
async def test_a_wrong_message_is_refused_by_field(
    grpc_address: str,
    engine: EchoEngine,
    spoil: Callable[[generation_pb2.EmbedRequest], object],
    field: str,
) -> None:
    request = generation_pb2.EmbedRequest(prompts=[generation_pb2.Prompt(text="a")])
    spoil(request)
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_stub(channel).Embed(request, timeout=DEADLINE_S).read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert engine.specs == []


async def test_leaving_a_call_ends_its_requests(client: AsyncClient, engine: EchoEngine) -> None:
    engine.delay_s = 30.0
    embedding_ = asyncio.create_task(client.embed(["a"] * 5))
    await until(lambda: len(engine.running) == 5)
    embedding_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await embedding_
    await until(lambda: not engine.running)


async def test_errors_of_the_engine_keep_their_class(
    client: AsyncClient, engine: EchoEngine
) -> None:
    engine.failure = UnavailableError("draining")
    with pytest.raises(UnavailableError, match="draining"):
        await client.embed(["a", "b"])
    engine.failure = QueueFullError("full")
    with pytest.raises(QueueFullError, match="full"):
        await client.embed(["a", "b"])


async def test_a_coordinator_that_leaves_embeddings_out_is_not_believed() -> None:
    async def answer(_: generation_pb2.EmbedRequest, context: Any) -> None:
        await context.write(generation_pb2.EmbedResponse(index=1, values=[1.0]))

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        cast("Any", answer),
        request_deserializer=generation_pb2.EmbedRequest.FromString,
        response_serializer=generation_pb2.EmbedResponse.SerializeToString,
    )
    service = "stagecoach.v1.GenerationService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Embed": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(IncompatibleError, match="1 embeddings of 2"):
                await client.embed(["a", "b"])
    finally:
        await server.stop(None)
