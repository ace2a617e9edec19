"""Who may come through the HTTP door, by which names and paths, and in which protocol."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from coordinator.config import ClusterConfig, CoordinatorConfig, parse_stages
from coordinator.doors.access.callers import Callers
from coordinator.doors.http.connection import ConnectionLimits
from coordinator.doors.http.host_guard import AllowedHosts
from coordinator.doors.http.lenient_paths import home_path
from coordinator.process import _app_options
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from tests.contract.echo_engine import EchoEngine
from tests.contract.http_door import DEADLINE_S, send_then_read, serving_http

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 2}
PROMPT = {"prompt": "abc", "max_tokens": 2}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving_http(EchoEngine()) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=DEADLINE_S) as found,
    ):
        yield found


def settled(response: httpx2.Response) -> dict[str, str]:
    """Headers that do not change from one answer to the next."""
    changing = ("date", "x-request-id", "request-id")
    return {name: value for name, value in response.headers.items() if name not in changing}


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/page/main.js", "/health", "/ready", "/version", "/status", "/openapi.json"),
        *("/v1/models", "/v1/models/echo", "/v1/models/other", "/nothing", CHAT),
    ],
)
async def test_head_is_what_get_is_without_its_body(client: httpx2.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert head.content == b""
    assert (head.status_code, settled(head)) == (got.status_code, settled(got))
    assert int(head.headers["content-length"]) == len(got.content)


async def test_the_head_of_an_endless_answer_ends(client: httpx2.AsyncClient) -> None:
    head = await client.head("/status/stream")
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert (await client.get("/health")).status_code == 200  # on the same connection


async def test_a_path_that_takes_get_says_that_it_takes_head(client: httpx2.AsyncClient) -> None:
    refused = await client.post("/health", json={})
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "home"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/health/", "/health"),
        ("/v1/models/", "/v1/models"),
        ("//v1/models", "/v1/models"),
        ("/models", "/v1/models"),
        ("/models/org/name/", "/v1/models/org/name"),
        ("/v1/models//srv/models/x", "/v1/models//srv/models/x"),
        ("/v1//models", "/v1/models"),
        ("/v1//v1///models//", "/v1/models"),
        ("//v1//models/srv//models/x", "/v1/models/srv//models/x"),
        ("/chat/completions", CHAT),
        ("/v1//chat//completions", CHAT),
        ("//v1//v1//tokenize", "/tokenize"),
        ("/status//stream", "/status/stream"),
        ("/v1/chat/completions/", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("/completions//", "/v1/completions"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health", "/health"),
        ("/v1/nothing/", "/v1/nothing"),
        ("/v1", "/v1"),
        ("/status/stream", "/status/stream"),
    ],
)
def test_a_path_leads_home(path: str, home: str) -> None:
    assert home_path(path) == home
    assert home_path(home) == home


@pytest.mark.parametrize(
    "path",
    ["/chat/completions", f"{CHAT}/", f"/v1{CHAT}", f"/{CHAT}", "/v1//chat/completions"],
)
async def test_a_body_reaches_the_route_that_its_path_means(
    client: httpx2.AsyncClient, path: str
) -> None:
    response = await client.post(str(client.base_url).rstrip("/") + path, json=BODY)
    assert response.status_code == 200
    assert response.json()["object"] == "chat.completion"


async def test_a_path_that_means_another_asks_for_the_key_of_that_one() -> None:
    async with (
        serving_http(EchoEngine(), callers=Callers.of_text("me:" + "x" * 40)) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        for path in ("/models", "/v1/models/", "/v1/v1/models", "/v1//models", "/v1//status"):
            assert (await client.get(f"http://{address}{path}")).status_code == 401
        for path in ("/health/", "/v1/ready"):
            assert (await client.get(path)).status_code == 200


OWN_HOSTS = [
    *("localhost", "LOCALHOST:8000", "localhost.", "app.localhost:3000"),
    *("127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "127.1", "0x7f.1:80", "2130706433"),
    *("[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:1", "0.0.0.0:8000"),
]
FOREIGN_HOSTS = [
    *("attacker.example", "attacker.example:8000", "localhost.attacker.example"),
    *("127.0.0.1.attacker.example", "localhostx", "10.0.0.1:8000", "[2001:db8::1]", "1.2"),
    *("localhost:8000:80", "localhost@attacker.example", "", ":8000", "[::1", "127.0.0.1,x"),
]
LOOPBACK = AllowedHosts(names=frozenset({"box.lan"}))


@pytest.mark.parametrize("host", [*OWN_HOSTS, "box.lan", "BOX.lan:8000"])
def test_a_host_of_this_machine_is_known(host: str) -> None:
    assert LOOPBACK.has_host(host)
    assert AllowedHosts(names=frozenset("*")).has_host(host)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_is_not_known(host: str) -> None:
    assert not LOOPBACK.has_host(host)


@pytest.mark.parametrize(
    ("origin", "is_known"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8000", True),
        ("http://box.lan", True),
        ("https://chat.example", True),
        ("app://obsidian.md", True),
        ("vscode-webview://1abc", True),
        ("http://chat.example", False),
        ("https://chat.example.attacker.example", False),
        ("http://attacker.example:8000", False),
        ("http://[x", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_foreign_page_is_told_from_a_program(origin: str, is_known: bool) -> None:
    allowed = AllowedHosts(
        names=frozenset({"box.lan"}), origins=frozenset({"https://chat.example"})
    )
    assert allowed.has_origin(origin) is is_known
    assert AllowedHosts(origins=frozenset("*")).has_origin(origin)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example:8000"},
        {"host": "attacker.example:8000", "origin": "http://attacker.example:8000"},
        {"origin": "http://attacker.example:8000"},
        {"origin": "null"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
async def test_a_page_that_rebinds_its_name_gets_nothing(
    headers: dict[str, str], method: str
) -> None:
    engine = EchoEngine()
    async with (
        serving_http(engine, allowed_hosts=LOOPBACK) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        for path in ("/status", CHAT, "/", "/v1/models"):
            response = await client.request(method, path, json=BODY, headers=headers)
            assert response.status_code == 403
            assert response.headers["x-request-id"]
            if method != "HEAD":
                assert response.json()["error"]["code"] == "foreign_host"
        assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert len(engine.specs) == 1


async def test_the_host_of_an_absolute_target_counts_and_none_at_all_is_taken() -> None:
    async with serving_http(EchoEngine(), allowed_hosts=LOOPBACK) as address:
        for target, headers, status in (
            (b"http://attacker.example/health", b"host: localhost\r\n", b"403"),
            (b"http://attacker.example:80/health", b"", b"403"),
            (b"http://localhost/health", b"host: attacker.example\r\n", b"200"),
            (b"/health", b"host: localhost\r\nhost: attacker.example\r\n", b"400"),
            (b"/health", b"", b"200"),
        ):
            request = b"GET %b HTTP/1.0\r\n%b\r\n" % (target, headers)
            assert (await exchange(address, request)).split()[1] == status


def options_of(**settings: Any) -> AllowedHosts | None:
    cluster = ClusterConfig(model="demo", stages=parse_stages(["localhost:1"]))
    config = CoordinatorConfig(clusters=(cluster,), **settings)
    return _app_options(config, None).allowed_hosts


def test_hosts_are_looked_at_where_nothing_else_keeps_a_page_away() -> None:
    assert options_of() is not None
    assert options_of(http_listen=Address("::1", 0)) is not None
    assert options_of(api_keys="k" * 40) is None
    assert options_of(http_listen=None) is None
    assert options_of(http_listen=Address("0.0.0.0", 8000), insecure_bind=True) is None
    given = options_of(
        http_listen=Address("0.0.0.0", 8000),
        insecure_bind=True,
        allowed_hosts=("Box.lan",),
        cors_origins=("https://chat.example",),
    )
    assert given == AllowedHosts(
        names=frozenset({"0.0.0.0", "box.lan"}), origins=frozenset({"https://chat.example"})
    )


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"allowed_hosts": ("http://x",)}, "allowed_host"),
        ({"allowed_hosts": ("x:80",)}, "allowed_host"),
        ({"cors_origins": ("chat.example",)}, "cors_origin"),
        ({"cors_origins": ("https://chat.example/",)}, "cors_origin"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_at_start(
    settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        options_of(**settings)
    assert caught.value.field == field


async def test_a_page_of_an_allowed_origin_may_ask_and_read() -> None:
    callers = Callers.of_text("me:" + "x" * 40)
    origins = ("https://chat.example",)
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    async with (
        serving_http(EchoEngine(), callers=callers, cors_origins=origins) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        for origin, status in ((origins[0], 200), ("https://other.example", 400)):
            response = await client.options(CHAT, headers={**preflight, "origin": origin})
            assert response.status_code == status
            allowed = response.headers.get("access-control-allow-origin")
            assert allowed == (origin if status == 200 else None)
        assert response.headers["vary"].startswith("Origin")
        refused = await client.post(CHAT, json=BODY, headers={"origin": origins[0]})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origins[0]
        answered = await client.post(
            CHAT,
            json={**BODY, "stream": True, "user": "me"},
            headers={"origin": origins[0], "authorization": f"Bearer {'x' * 40}"},
        )
        assert answered.headers["x-stagecoach-ignored"] == "user"
        exposed = answered.headers["access-control-expose-headers"]
        assert {"x-request-id", "x-stagecoach-ignored"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    ("origin", "method", "param"),
    [
        ("https://other.example", "POST", "origin"),
        ("null", "POST", "origin"),
        ("https://chat.example", "PUT", "access-control-request-method"),
    ],
)
async def test_a_preflight_is_refused_in_the_shape_of_all_errors(
    origin: str, method: str, param: str
) -> None:
    preflight = {"origin": origin, "access-control-request-method": method}
    async with (
        serving_http(EchoEngine(), cors_origins=("https://chat.example",)) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        refused = await client.options(CHAT, headers=preflight)
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["vary"].startswith("Origin")
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert repr(preflight[param]) in error["message"]


async def test_without_an_allowed_origin_no_page_may_read(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"origin": "https://chat.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_model_is_served_under_each_of_its_names() -> None:
    names = ("gpt-4o", "org/name", "/srv/models/x")
    async with (
        serving_http(EchoEngine(names=names)) as address,
        httpx2.AsyncClient(base_url=f"http://{address}") as client,
    ):
        listed = (await client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == list(names)
        for name in names:
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
        wanted: tuple[str | None, ...] = (*names, None, "")
        for one in wanted:
            answer = (await client.post(CHAT, json={**BODY, "model": one})).json()
            assert answer["model"] == "gpt-4o"
        for name in ("echo", "gpt-4", "org"):
            refused = await client.post(CHAT, json={**BODY, "model": name})
            assert refused.status_code == 404
            assert "'gpt-4o'" in refused.json()["error"]["message"]


async def exchange(address: str, *pieces: bytes) -> bytes:
    """Sends bytes, one piece after the other, and reads until the server ends the connection."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            return await reader.read()
    finally:
        writer.close()


def post(body: bytes, *headers: bytes) -> bytes:
    head = [
        b"POST /v1/completions HTTP/1.1",
        b"host: localhost",
        b"content-type: application/json",
        *headers,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


H2C = (
    b"connection: Upgrade, HTTP2-Settings",
    b"upgrade: h2c",
    b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
RAW = json.dumps(PROMPT).encode()
LENGTH = b"content-length: %d" % len(RAW)
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
LAST = GET + b"connection: close\r\n\r\n"


@pytest.mark.parametrize(
    "offer",
    [
        H2C,
        (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13"),
        (b"upgrade: TLS/1.0", b"connection: keep-alive, upgrade"),
    ],
)
@pytest.mark.parametrize(
    "cut", [None, "head", "body", "bytes"], ids=["whole", "in the head", "in the body", "bytes"]
)
async def test_an_offer_of_another_protocol_is_declined_and_the_body_kept(
    offer: tuple[bytes, ...], cut: str | None
) -> None:
    request = post(RAW, LENGTH, *offer)
    data = request + request + GET + b"\r\n" + GET + b"\r\n".join(offer) + b"\r\n\r\n" + LAST
    match cut:
        case "head":
            pieces = [data[:70], data[70:]]
        case "body":
            pieces = [data[: len(request) - 5], data[len(request) - 5 :]]
        case "bytes":
            pieces = [data[start : start + 7] for start in range(0, len(data), 7)]
        case _:
            pieces = [data]
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, *pieces)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"HTTP/1.1 ") == 5
    assert received.count(b'"text":"ab"') == 2
    assert received.count(b'{"status":"ok"}') == 3


async def test_an_offer_with_a_chunked_body_is_declined_and_the_body_kept() -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(RAW), RAW)
    request = post(chunks, b"transfer-encoding: chunked", *H2C)
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, request + LAST)
    assert b'"text":"ab"' in received
    assert received.endswith(b'{"status":"ok"}')


async def test_thousands_of_offers_in_one_piece_are_declined() -> None:
    many = 2000
    offers = (GET + b"\r\n".join(H2C) + b"\r\n\r\n") * many
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, offers + LAST)
    assert received.count(b'{"status":"ok"}') == many + 1


def old(request: bytes) -> bytes:
    """The same request of a client that knows only HTTP/1.0."""
    return request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


@pytest.mark.parametrize("headers", [(), (b"connection: keep-alive",), (b"expect: 100-continue",)])
async def test_a_client_of_http_1_0_gets_no_chunks(headers: tuple[bytes, ...]) -> None:
    """It took the sizes of chunks for text, and might have waited for the end of the connection."""
    streamed = json.dumps({**PROMPT, "stream": True}).encode()
    long = json.dumps({"prompt": '"', "max_tokens": 4000, "n": 8}).encode()
    answers = []
    async with serving_http(EchoEngine()) as address:
        for body in (streamed, long, RAW):
            request = old(post(body, b"content-length: %d" % len(body), *headers))
            head, _, answer = (await exchange(address, request)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nconnection: close" in head
            assert b"transfer-encoding" not in head
            assert b"keep-alive" not in head
            assert (b"\r\ncontent-length: " in head) is (body == RAW)
            answers.append(answer)
    assert answers[0].startswith(b"data: {")
    assert answers[0].endswith(b"\n\ndata: [DONE]\n\n")
    assert [one["text"] for one in json.loads(answers[1])["choices"]] == ['"' * 4000] * 8
    assert json.loads(answers[2])["choices"][0]["text"] == "ab"


@pytest.mark.parametrize("path", [b"/health", b"/status/stream", b"/nothing"])
async def test_head_of_a_client_of_http_1_0_is_a_head(path: bytes) -> None:
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, b"HEAD %b HTTP/1.0\r\n\r\n" % path)
    assert received.endswith(b"\r\n\r\n")
    assert received.count(b"\r\n\r\n") == 1
    assert b"transfer-encoding" not in received


LONG = 50_000_000
TOO_LONG = b"HTTP/1.1 413 "


@pytest.mark.parametrize(
    "headers",
    [(b"content-length: %d" % LONG,), (b"content-length: %d" % LONG, b"expect: 100-continue")],
    ids=["length", "expect"],
)
async def test_a_client_that_stops_after_a_413_is_not_left_waiting(
    headers: tuple[bytes, ...],
) -> None:
    async with serving_http(EchoEngine(), limits=ConnectionLimits(linger_s=0.1)) as address:
        received = await exchange(address, post(b"", *headers))
    assert received.startswith(TOO_LONG)
    assert b"\r\nconnection: close\r\n" in received
    assert b"keep-alive" not in received.lower()
    assert received.count(b"HTTP/1.1 ") == 1  # no 100 before it either


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_client_that_reads_only_after_sending_gets_its_413(is_chunked: bool) -> None:
    """Its connection once was open for as long again, or was reset under the answer."""

    framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % LONG
    piece = b"x" * 1_000_000
    body = [b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece] * (LONG // len(piece))
    pieces = (post(b"", framing), *body, b"0\r\n\r\n" if is_chunked else b"")
    async with serving_http(EchoEngine()) as address:
        received = await asyncio.to_thread(send_then_read, address, pieces)
    assert received.startswith(TOO_LONG)
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_short_body_that_was_refused_unread_leaves_the_connection_usable() -> None:
    request = post(b"", LENGTH).replace(b"/v1/completions", b"/nothing")
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, request, RAW, LAST)
    assert received.startswith(b"HTTP/1.1 404 ")
    assert received.endswith(b'{"status":"ok"}')


async def test_garbage_after_an_early_answer_gets_no_second_answer() -> None:
    limits = ConnectionLimits(linger_s=5)
    async with serving_http(EchoEngine(), limits=limits) as address:
        start = post(b"", b"transfer-encoding: chunked").replace(b"application/json", b"text/plain")
        received = await exchange(address, start, b"not a length\r\n")
    assert received.startswith(b"HTTP/1.1 415 ")
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_body_that_is_waited_for_is_asked_for() -> None:
    request = post(b"", LENGTH, b"expect: 100-continue")
    async with serving_http(EchoEngine()) as address:
        received = await exchange(address, request, RAW, LAST)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert received.endswith(b'{"status":"ok"}')


async def test_an_idle_connection_is_kept_longer_than_pools_keep_it_and_says_so(
    client: httpx2.AsyncClient,
) -> None:
    assert ConnectionLimits().keep_alive_s == 75
    assert (await client.get("/health")).headers["keep-alive"] == "timeout=75"
    closing = await client.get("/health", headers={"connection": "close"})
    assert "keep-alive" not in closing.headers


async def test_status_is_what_the_command_line_prints(client: httpx2.AsyncClient) -> None:
    status = (await client.get("/status")).json()
    assert status["model"] == "echo"
    assert status["stages"][0]["layers"] == [0, 2]
    assert status["stages"][1] == {
        **dict.fromkeys(("device", "dtype", "layers", "pid", "pipeline", "version")),
        **dict.fromkeys(("bits_per_weight", "kv_dtype")),
        **dict.fromkeys(("kv_block_size", "kv_blocks_total", "kv_blocks_free"), 0),
        **dict.fromkeys(("kv_blocks_cached", "weight_bytes", "kv_bytes"), 0),
        **{"index": 1, "address": "h:2", "state": "lost", "emulated": False},
    }
