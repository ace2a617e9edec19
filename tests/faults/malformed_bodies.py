"""JSON that a broken or hostile client might post, made from a valid request and a seed."""

import json
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from coordinator.doors.http.schema.base import RequestModel
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest

Body = dict[str, object]

ROUTES: Mapping[str, type[RequestModel]] = MappingProxyType(
    {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
    }
)
"""What takes a body, and which."""

_COSTLY = frozenset({"max_tokens", "max_completion_tokens"})
"""Their null is valid and means as many tokens as fit, which is work and not malformed."""

_NOT_TEXT = "\ud800"
"""A lone surrogate."""

_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, -0.0, 2**31, 2**63, -(2**63) - 1, 10**400),
    *(1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "\0", "\r\n\r\n", "é" * 5000, _NOT_TEXT, "�", "NaN"),
    *([], [[]], [None], [-1], [259], [2**32], [1] * 2000, [""], ["a"] * 2000, [[1], "a"]),
    *({}, {"": ""}, {"type": "text"}, {"1": 1e9}, {"-1": 1}, {_NOT_TEXT: 1}, {"type": []}),
    *({str(index): 1 for index in range(3000)}, "x" * 1023, "x" * 1024, [5] * 1023, [5] * 1025),
)

_SCHEMAS: tuple[object, ...] = (
    {"$ref": "#"},
    {"$ref": "#/$defs/gone"},
    {"$ref": "http://127.0.0.1:1/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "string", "pattern": "(a+)+$"},
    {"type": "string", "pattern": "("},
    {"type": "string", "minLength": 2**31, "maxLength": 2**31},
    {"type": "array", "minItems": 2**40},
    {"type": "number", "minimum": 1e308, "maximum": -1e308},
    {"type": "integer", "multipleOf": 0},
    {"type": "nothing"},
    {"enum": []},
    {"enum": ["x" * 100] * 500},
    {"allOf": [{"type": "string"}, {"type": "object"}]},
    {"oneOf": [{"const": index} for index in range(300)]},
    {"patternProperties": {"(": {}}},
    {"not": {}},
)
_REGEXES = (
    *("(", "[", "a{100}", "(a{1000}){1000}", "((a*)*)*b", "\\p{Nothing}", "(?=a)b", "\\1"),
    *("[^\\x00-\\x{10FFFF}]", "(.*a){50}", "\0", "\\x{D800}", "(?:" * 300),
)
_LARKS = (
    *("start: start", "start:", "start: nothing", 'start: "a" start | ', "x: 'a'", "%import x"),
    *("start: /(/", 'start: A\nA: A "a"', "start: %json {", "start: (((" * 50, "\0"),
    'start: "a"{100}',
)


def malformed_body(route: str, chance: random.Random) -> bytes:
    """A body for a route; a few are valid by chance."""
    body = _valid_body(route, chance)
    kind = chance.random()
    if kind < 0.15:
        return chance.choice(_NOT_JSON)(chance)
    if kind < 0.25 and "completions" in route:
        _hostile_grammar(body, chance)
    else:
        for _ in range(chance.randrange(1, 3)):
            chance.choice(_MUTATIONS)(body, route, chance)
    if chance.random() < 0.5:
        return json.dumps(body).encode()
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def valid_body(route: str, chance: random.Random) -> bytes:
    """A body that the route takes."""
    return json.dumps(_valid_body(route, chance)).encode()


def _valid_body(route: str, chance: random.Random) -> Body:
    text = "".join(chance.choices("abc é\n", k=chance.randrange(1, 20)))
    match route:
        case "/v1/chat/completions":
            messages = [{"role": "user", "content": text}]
            return {"messages": messages, "max_tokens": 2, "stream": chance.random() < 0.5}
        case "/v1/completions":
            return {"prompt": text, "max_tokens": 2, "stream": chance.random() < 0.5}
        case "/tokenize":
            return {"prompt": text}
    return {"tokens": [chance.randrange(3, 259) for _ in range(5)]}


def _other_value(body: Body, route: str, chance: random.Random) -> None:
    field = chance.choice(list(ROUTES[route].model_fields))
    value = chance.choice(_VALUES)
    if value is not None or field not in _COSTLY:
        body[field] = value


def _other_message(body: Body, route: str, chance: random.Random) -> None:
    if "messages" not in ROUTES[route].model_fields:
        return
    message: Body = {"role": "user", "content": "a"}
    body["messages"] = [message] * chance.choice((1, 2, 500))
    field = chance.choice(("role", "content", "name", "tool_calls", "what", "type"))
    message[field] = chance.choice(_VALUES)
    if chance.random() < 0.3:
        part: Body = {"type": "text", "text": "a"}
        part[chance.choice(("type", "text", "image_url"))] = chance.choice(_VALUES)
        message["content"] = [part]


def _unknown_field(body: Body, _: str, chance: random.Random) -> None:
    name = chance.choice(("what", "", "\0", _NOT_TEXT, "__class__", "x" * 10_000, "MAX_TOKENS"))
    body[name] = chance.choice(_VALUES)


def _missing_field(body: Body, _: str, chance: random.Random) -> None:
    removable = [field for field in body if field not in _COSTLY]
    if removable:
        del body[chance.choice(removable)]


def _hostile_grammar(body: Body, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            schema = {"name": "x", "schema": chance.choice(_SCHEMAS)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        case 1:
            body["structured_outputs"] = {"json": chance.choice(_SCHEMAS)}
        case 2:
            body["structured_outputs"] = {"regex": chance.choice(_REGEXES)}
        case 3:
            body["structured_outputs"] = {"grammar": chance.choice(_LARKS)}


_MUTATIONS: tuple[Callable[[Body, str, random.Random], None], ...] = (
    _other_value,
    _other_value,
    _other_value,
    _other_message,
    _unknown_field,
    _missing_field,
)

_NOT_JSON: tuple[Callable[[random.Random], bytes], ...] = (
    lambda _: b"",
    lambda _: b"null",
    lambda _: b"[]",
    lambda _: b'"text"',
    lambda _: b"1e999",
    lambda _: b"{}{}",
    lambda _: b'{"prompt": "a",}',
    lambda _: b"{'prompt': 'a'}",
    lambda _: b'{"prompt": "a", "prompt": ["b"]}',
    lambda _: b'{"prompt": "\xff\xfe"}',
    lambda _: b'{"prompt": "\\ud800"}',
    lambda _: b'{"prompt": "\x00"}',
    lambda _: '{"prompt": "a", "max_tokens": 1}'.encode("utf-16"),
    lambda _: b'\xef\xbb\xbf{"prompt": "a"}',
    lambda _: b'{"prompt": 1' + b"0" * 20_000 + b"}",
    lambda chance: chance.choice((b"[", b'{"a":')) * chance.choice((10, 200, 100_000)),
    lambda chance: b'{"prompt":' + b"[" * (num := chance.choice((9, 5000))) + b"]" * num + b"}",
    lambda chance: chance.randbytes(chance.randrange(300)),
)
