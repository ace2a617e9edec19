"""Bytes that a broken or hostile HTTP client might send, made from a valid request and a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.malformed_bodies import ROUTES, malformed_body, valid_body

_PAGES = ("/", "/page/main.js", "/docs", "/favicon.ico", "/.env", "/page/../../etc/passwd")
_READ_PATHS = ("/health", "/ready", "/version", "/status", "/openapi.json")
_MODEL_PATHS = ("/v1/models", "/v1/models/", "/v1/models/x", "/v1/models/" + "x/" * 500)
_ODD_PATHS = (
    *("//", "/%00", "/%ff%fe", "/%", "/..", "*", "/v1/completions/", "/V1/COMPLETIONS", "/?" * 99),
    *("/v1/models/%2e%2e%2fconfig.json", "/health?" + "a=b&" * 300, "/" + "a" * 8000),
)
_PATHS = (*ROUTES, *_PAGES, *_READ_PATHS, *_MODEL_PATHS, *_ODD_PATHS)
_METHODS = (
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI"),
    *("get", "", "X" * 200),
)
_LINES = (
    *(
        b"GET",
        b"GET /",
        b"GET / HTTP/9.9",
        b"GET / HTTP/1.0",
        b"GET / HTTP/2.0",
        b" GET / HTTP/1.1",
    ),
    *(b"GET /\x00 HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET  /  HTTP/1.1", b"GET http://a/ HTTP/1.1"),
    *(
        b"GET / HTTP/1.1 x",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0",
        b"CONNECT a:1 HTTP/1.1",
    ),
)
_HEADERS = (
    *(
        b"content-length: -1",
        b"content-length: +5",
        b"content-length: 0x10",
        b"content-length: 1,2",
    ),
    *(b"content-length: 99999999999999999999", b"content-length: 5", b"content-length: 9999999"),
    *(b"content-length:", b"content-length: \xff", b"transfer-encoding: chunked"),
    *(b"transfer-encoding: gzip, chunked", b"transfer-encoding: x", b"expect: 100-continue"),
    *(b"upgrade: websocket\r\nconnection: upgrade", b"upgrade: h2c\r\nconnection: upgrade"),
    *(b"content-encoding: gzip", b"content-type: text/plain", b"content-type: \xff"),
    *(
        b"authorization: Bearer \xff\x00",
        b"host: \x00",
        b"no colon",
        b": no name",
        b"x: a\r\n folded",
    ),
    *(b"x\x00y: 1", b"x: " + b"y" * 70_000, b"\r\n".join(b"x-%d: y" % i for i in range(3000))),
    *(b"cookie: " + b"a=b; " * 2000, b"if-none-match: " + b"," * 5000, b"origin: null"),
)
_CHUNKS = (
    *(
        b"zz\r\n",
        b"-1\r\n",
        b"ffffffffffffffffff\r\n",
        b"5\r\nab\r\n",
        b"5;" + b"x" * 3000 + b"\r\n",
    ),
    *(b"1\r\na\r\n" * 500 + b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
)
_LONG_BYTES = 1_200_000
"""Above the longest body that is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileRequest:
    """What is sent on one connection."""

    data: bytes
    is_whole: bool
    """True when HTTP knows where it ends, so that it must be answered and the connection ended."""


def hostile_request(seed: int) -> HostileRequest:
    """One request; the same for the same seed. A few are valid by chance."""
    chance = random.Random(seed)
    kind = chance.random()
    if kind < 0.55:
        route = chance.choice(list(ROUTES))
        return _whole(_post(route, malformed_body(route, chance)))
    if kind < 0.7:
        return _elsewhere(chance)
    return HostileRequest(data=chance.choice(_DAMAGES)(chance), is_whole=False)


def _whole(data: bytes) -> HostileRequest:
    return HostileRequest(data=data, is_whole=True)


def _elsewhere(chance: random.Random) -> HostileRequest:
    """Any method at any path, with a body that may not belong there."""
    path = chance.choice(_PATHS)
    method = chance.choice(_METHODS[:7])
    body = chance.choice((b"", valid_body(chance.choice(list(ROUTES)), chance)))
    return _whole(_request(f"{method} {path} HTTP/1.1".encode(), body))


def _post(route: str, body: bytes) -> bytes:
    return _request(f"POST {route} HTTP/1.1".encode(), body)


def _request(line: bytes, body: bytes, *headers: bytes) -> bytes:
    head = [
        line,
        b"host: localhost",
        b"connection: close",
        b"content-type: application/json",
        *(headers or (b"content-length: %d" % len(body),)),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _valid(chance: random.Random) -> bytes:
    route = chance.choice(list(ROUTES))
    return _post(route, valid_body(route, chance))


def _random_bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 500))


def _other_line(chance: random.Random) -> bytes:
    line = chance.choice((*_LINES, b""))
    if not line:
        line = f"{chance.choice(_METHODS)} {chance.choice(_PATHS)} HTTP/1.1".encode()
    return _request(line, chance.choice((b"", b"{}")))


def _other_headers(chance: random.Random) -> bytes:
    route = chance.choice(list(ROUTES))
    return _request(
        f"POST {route} HTTP/1.1".encode(),
        valid_body(route, chance),
        *chance.sample(_HEADERS, chance.randrange(1, 4)),
    )


def _other_chunks(chance: random.Random) -> bytes:
    route = chance.choice(list(ROUTES))
    line = f"POST {route} HTTP/1.1".encode()
    return _request(line, chance.choice(_CHUNKS), b"transfer-encoding: chunked")


def _cut(chance: random.Random) -> bytes:
    data = _valid(chance)
    return data[: chance.randrange(1, len(data))]


def _flipped(chance: random.Random) -> bytes:
    data = bytearray(_valid(chance))
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _pipelined(chance: random.Random) -> bytes:
    keep_alive = _valid(chance).replace(b"connection: close\r\n", b"")
    return keep_alive * chance.randrange(2, 6)


def _endless_stream(_: random.Random) -> bytes:
    return _request(b"GET /status/stream HTTP/1.1", b"")


def _long(chance: random.Random) -> bytes:
    route = chance.choice(list(ROUTES))
    line = f"POST {route} HTTP/1.1".encode()
    if chance.random() < 0.2:
        body = b'{"prompt":"' + b"x" * _LONG_BYTES + b'"}'
        if chance.random() < 0.5:
            return _request(line, body)
        return _request(line, b"%x\r\n" % len(body) + body, b"transfer-encoding: chunked")
    return _request(line, b"", b"x: " + b"y" * chance.choice((60_000, 66_000, 200_000)))


_DAMAGES: tuple[Callable[[random.Random], bytes], ...] = (
    _random_bytes,
    _other_line,
    _other_line,
    _other_headers,
    _other_headers,
    _other_chunks,
    _cut,
    _flipped,
    _flipped,
    _pipelined,
    _endless_stream,
    _long,
)
