"""API keys at both doors: real servers, and everything that a stranger may try.

This is row B8 of what has to be survived: a wrong, missing or wrong-case key is answered with 401
or UNAUTHENTICATED, and nothing of it is logged.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.cli.shared.connection import Connection
from coordinator.core.catalog import Catalog
from coordinator.doors.access.api_key import new_key
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.doors.access.callers import Callers
from coordinator.doors.http.app import create_app
from coordinator.doors.http.authentication import OPEN_PATHS
from coordinator.doors.http.door import Door
from stagecoach.client import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    QueueFullError,
    UnauthenticatedError,
)
from stagecoach.contract.status import from_rpc_error
from stagecoach.security.private_file import write_private
from stagecoach.v1 import generation_pb2
from tests.contract.echo_engine import EchoEngine, Preparing, serving
from tests.contract.http_door import serving_http

DEADLINE_S = 90.0

ALICE, BOB = new_key("alice"), new_key("bob")


def headers_that_are_refused(key: str) -> list[str]:
    return [
        "",
        "Bearer",
        f"Bearer {key.swapcase()}",
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        f"Bearer {'x' * len(key)}",
        f"Bearer {'x' * 4000}",
        f"Basic {key}",
        key,
        f"Bearer {BOB.line.rpartition(':')[2]}",  # the hash is not the key
    ]


class Doors:
    """Both doors of one engine, which only Alice and Bob may use."""

    def __init__(self, engine: EchoEngine, grpc_address: str, http_address: str) -> None:
        self.engine = engine
        self.grpc = grpc_address
        self.http = f"http://{http_address}"

    def client(self, key: str | None) -> AsyncClient:
        return AsyncClient(self.grpc, api_key=key)


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    engine = EchoEngine()
    callers = Callers.of_text(f"{ALICE.line}\n{BOB.line}")
    shares = CallerShares(max_requests=2)
    async with (
        serving(engine, callers=callers, shares=shares) as grpc_address,
        serving_http(engine, callers=callers, shares=shares) as http_address,
    ):
        yield Doors(engine, grpc_address, http_address)


async def test_a_good_key_opens_both_doors(doors: Doors) -> None:
    async with doors.client(ALICE.key) as client, httpx2.AsyncClient(trust_env=False) as http:
        assert (await client.complete("ab", max_tokens=3)).text == "aba"
        assert await client.tokenize("ab") == [97, 98]
        assert (await client.status()).model_id == "echo"
        async with await client.watch_steps() as watch:
            assert watch.origin_unix_ns > 0
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} {ALICE.key}"}
            assert (await http.get(f"{doors.http}/v1/models", headers=headers)).status_code == 200


async def test_every_rpc_is_refused_without_a_good_key_and_nothing_is_logged(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    methods = [
        f"/{method.containing_service.full_name}/{method.name}"
        for method in generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].methods
    ]
    assert len(methods) >= 4
    unknown = ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/no.Service/Method"]
    caplog.set_level("DEBUG")
    async with grpc.aio.insecure_channel(doors.grpc) as channel:
        for header in (None, *headers_that_are_refused(ALICE.key)):
            metadata = None if header is None else (("authorization", header),)
            for method in (*methods, *unknown):
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"", metadata=metadata, timeout=DEADLINE_S)
                error = from_rpc_error(caught.value)
                assert isinstance(error, UnauthenticatedError), (method, header)
                assert ALICE.key not in error.message
    assert ALICE.key[-12:].lower() not in caplog.text.lower()


async def test_health_is_open_to_all(doors: Doors) -> None:
    async with (
        grpc.aio.insecure_channel(doors.grpc) as channel,
        httpx2.AsyncClient(trust_env=False) as http,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for path in OPEN_PATHS:
            assert (await http.get(f"{doors.http}{path}")).status_code == 200


async def test_every_route_is_refused_without_a_good_key(doors: Doors) -> None:
    paths = create_app(Door(Catalog())).openapi()["paths"].keys() - OPEN_PATHS
    assert {"/v1/chat/completions", "/status"} <= paths
    async with httpx2.AsyncClient(trust_env=False) as http:
        for path in (*paths, "/openapi.json", "/nothing", "/health/x", "/v1/models/", "/READY"):
            for method in ("GET", "POST"):
                answer = await http.request(method, f"{doors.http}{path}")
                assert answer.status_code == 401, path
        for header in headers_that_are_refused(ALICE.key):
            answer = await http.get(f"{doors.http}/v1/models", headers={"authorization": header})
            assert answer.status_code == 401, header
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert ALICE.key not in answer.text


async def test_the_description_names_the_key_and_the_routes_that_are_open(doors: Doors) -> None:
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.get(
            f"{doors.http}/openapi.json", headers={"authorization": f"Bearer {ALICE.key}"}
        )
    described = answer.json()
    assert described["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    for path, operations in described["paths"].items():
        for operation in operations.values():
            asks = (
                operation.get("security") == [{"api_key": []}] and "401" in operation["responses"]
            )
            assert asks == (path not in OPEN_PATHS), path
    assert "securitySchemes" not in create_app(Door(Catalog())).openapi()["components"]


async def test_a_key_has_its_share_of_requests_and_others_have_theirs(doors: Doors) -> None:
    async with doors.client(ALICE.key) as alice, doors.client(BOB.key) as bob:
        running = [alice.generate("ab", max_tokens=4000) for _ in range(2)]
        for stream in running:
            await anext(stream)
        with pytest.raises(QueueFullError, match="'alice' has 2 requests at once, its limit is 2"):
            await alice.complete("ab", max_tokens=1)
        assert (await bob.complete("ab", max_tokens=1)).text == "a"
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.post(
                f"{doors.http}/v1/completions",
                json={"model": "echo", "prompt": "ab", "max_tokens": 1},
                headers={"authorization": f"Bearer {ALICE.key}"},
            )
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        for stream in running:
            stream.close()
        await until_taken(alice)


async def test_a_request_counts_while_it_is_prepared_and_no_more_once_it_is_left(
    doors: Doors,
) -> None:
    preparing = doors.engine.preparing = Preparing()
    async with doors.client(ALICE.key) as alice, doors.client(BOB.key) as bob:
        left = [asyncio.create_task(alice.complete("ab", max_tokens=1)) for _ in range(2)]
        await until(lambda: preparing.num_waiting == 2)
        with pytest.raises(QueueFullError, match="'alice' has 2 requests at once, its limit is 2"):
            await alice.complete("ab", max_tokens=1)
        for call in left:
            call.cancel()
        await until(lambda: preparing.num_cancelled == 2)
        preparing.go_on.set()
        assert (await bob.complete("ab", max_tokens=1)).text == "a"
        for _ in range(3):
            assert (await alice.complete("ab", max_tokens=1)).text == "a"
        doors.engine.failure = InvalidArgumentError("wrong", field="grammar")
        for _ in range(3):
            with pytest.raises(InvalidArgumentError):
                await alice.complete("ab", max_tokens=1)
    assert len(doors.engine.specs) == 4


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.005)


async def until_taken(client: AsyncClient) -> None:
    """Asks until a request is taken; the end of a call reaches the server a little later."""
    while True:
        try:
            await client.complete("ab", max_tokens=1)
            return
        except QueueFullError:
            pass


async def test_no_two_keys_share_a_prefix_and_one_key_does_through_both_doors(doors: Doors) -> None:
    for owner in (ALICE, BOB):
        async with doors.client(owner.key) as client:
            for salt in (None, None, "mine"):
                await client.complete("ab", max_tokens=1, cache_salt=salt)
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"{doors.http}/v1/completions",
            json={"model": "echo", "prompt": "ab", "max_tokens": 1},
            headers={"authorization": f"Bearer {ALICE.key}"},
        )
        assert answer.status_code == 200
    salts = [spec.cache_salt for spec in doors.engine.specs]
    assert salts[0] == salts[1] == salts[6]
    assert salts[3] == salts[4]
    assert len(set(salts)) == 4
    assert None not in salts


async def test_keys_can_be_added_and_withdrawn_while_serving(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_private(file, f"{ALICE.line}\n".encode())
    async with serving(EchoEngine(), callers=Callers.of_file(file)) as address:
        async with AsyncClient(address, api_key=BOB.key) as bob:
            with pytest.raises(UnauthenticatedError, match="the API key is wrong"):
                await bob.status()
            write_private(file, f"{BOB.line}\n".encode(), overwrite=True)
            assert (await bob.status()).ready
        async with AsyncClient(address, api_key=ALICE.key) as alice:
            with pytest.raises(UnauthenticatedError):
                await alice.status()


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n"])
async def test_a_key_may_have_the_line_end_of_the_file_it_was_in(
    doors: Doors, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doors.client(f" {ALICE.key}{end}") as client:
        assert (await client.status()).ready
    monkeypatch.setenv("STAGECOACH_API_KEY", ALICE.key + end)
    connection = Connection.of(doors.grpc, None, None)
    async with connection.async_client() as client:
        assert (await client.status()).ready
    for key in (f"{ALICE.key}{end}\nx", f"\u201c{ALICE.key}\u201d"):
        with pytest.raises(InvalidArgumentError, match="printable ASCII"):
            doors.client(key)
    monkeypatch.setenv("STAGECOACH_API_KEY", end)
    assert Connection.of(doors.grpc, None, None).api_key is None


def test_a_client_never_shows_its_key() -> None:
    with Client("127.0.0.1:1", api_key=ALICE.key) as client:
        assert ALICE.key not in repr(client) + repr(vars(client)["_peer"])
