"""Keys of JSON outputs, however they are spelled: what a parser reads validates."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from coordinator.constraint.messages import Standing
from tests.json_outputs import ESCAPES, Output, accepts, output_maker, start, walk


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


INTEGER = {"type": "integer", "minimum": 0, "maximum": 9}
NAMES = ['"', "\\", "/", "\n", "\x1b", "\x7f", "\u00e9", "\U0001f600"]
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
    {"properties": {"a": {"const": 1}}, "type": "object", "maxProperties": 3, "required": ["a"]},
    {"type": "object", "properties": {"a": False}},
    {"type": "object", "patternProperties": {"^a$": INTEGER}},
    {"type": "object", "patternProperties": {"^a$": INTEGER}, "additionalProperties": False},
    {
        "type": "object",
        "patternProperties": {"^[a-f]$": INTEGER},
        "properties": {"a": {"const": 1}},
        "additionalProperties": False,
    },
    {"type": "object", "required": ["a", "b"], "additionalProperties": INTEGER},
    *(
        {"type": "object", "properties": {name: INTEGER}, "additionalProperties": {"type": "null"}}
        for name in NAMES
    ),
    {"allOf": [{"properties": {"a": INTEGER}}, {"additionalProperties": INTEGER}]},
    {"anyOf": [{"type": "object", "properties": {"a": INTEGER}}, {"type": "null"}]},
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/inner"}},
        "required": ["a"],
        "$defs": {"inner": {"type": "object", "properties": {"a": INTEGER}}},
    },
    {"type": "object", "additionalProperties": INTEGER, "minProperties": 1},
    {"type": "object", "required": ["a"], "additionalProperties": INTEGER, "minProperties": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_documents_with_odd_spellings_of_keys_validate(
    make_output: Callable[[], Output], schema: dict[str, Any]
) -> None:
    validator = jsonschema_rs.validator_for(schema)
    generator = random.Random(7)
    names = schema.get("properties", {"a": {}})
    spelled = [escape for escape in ESCAPES if json.loads(f'"{escape}"') in names]
    likely = {token.encode() for token in ['"', ":", ",", "}", *spelled]}
    documents = [walk(make_output(), json.dumps(schema), generator, likely) for _ in range(12)]
    ended = [document for document in documents if document is not None]
    assert ended
    for document in ended:
        assert validator.is_valid(json.loads(document)), document


@pytest.mark.parametrize("name", ["a", *NAMES])
def test_a_named_key_has_one_spelling_and_comes_once(
    make_output: Callable[[], Output], name: str
) -> None:
    text = json.dumps({"type": "object", "properties": {name: {"const": 1}}, "required": [name]})
    first = f"{{{json.dumps(name, ensure_ascii=False)}:1"
    assert accepts(make_output(), text, first + "}")
    units = name.encode("utf-16-be")
    code_points = "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
    for again in (name, code_points, code_points.upper().replace("U", "u")):
        spelled = again if again.startswith("\\u") else json.dumps(again)[1:-1]
        assert not accepts(make_output(), text, f'{first},"{spelled}":2}}'), spelled
    assert accepts(make_output(), text, f'{first},"other":2}}')


@pytest.mark.parametrize(
    ("schema", "has_escapes"),
    [
        ({"type": "object"}, True),
        ({"type": "string"}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}}, False),
    ],
    ids=json.dumps,
)
def test_only_keys_that_are_taken_apart_cost_strings_their_control_characters(
    make_output: Callable[[], Output], schema: dict[str, Any], has_escapes: bool
) -> None:
    value = "\\u001b" if schema["type"] == "string" else '{"a":"\\u001b"}'
    document = f'"{value}"' if schema["type"] == "string" else value
    assert accepts(make_output(), json.dumps(schema), document) is has_escapes


REFUSED: list[tuple[Any, str]] = [
    ({"type": "object", "minProperties": 2}, "minProperties 2 at #/minProperties"),
    (
        {"patternProperties": {"^a$": {}}, "additionalProperties": False, "minProperties": 2},
        "minProperties 2 at #/minProperties",
    ),
    (
        {"items": {"required": ["a", "a"], "minProperties": 3}},
        "minProperties 3 at #/items/minProperties",
    ),
    ({"properties": {"a": {"const": "\x1b"}}}, "const with U+001B at #/properties/a/const"),
    ({"properties": {"a": {"enum": [["\x7f"]]}}}, "enum with U+007F at #/properties/a/enum"),
    (
        {"properties": {"a": {"type": "string", "pattern": "^(a|\\x1b)$"}}},
        "pattern ^(a|\\x1b)$ at #/properties/a/pattern",
    ),
    ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance {'lenient': True} at #/x-guidance"),
    ({"items": {"x-guidance": 1}}, "x-guidance 1 at #/items/x-guidance"),
]


@pytest.mark.parametrize(("schema", "said"), REFUSED)
def test_what_would_break_keys_is_refused_by_name(
    make_output: Callable[[], Output], schema: dict[str, Any], said: str
) -> None:
    state = start(make_output(), json.dumps(schema))
    assert state.standing is Standing.BROKEN
    assert said in state.error


TAKEN: list[Any] = [
    {"properties": {"a": {"enum": ["\x1b"]}}, "additionalProperties": False},
    {"properties": {"a": {"enum": ['\n\t"\\/', {"\x1b": 1}]}}},
    {"properties": {"a": {"type": "string", "pattern": "^[^\\x00-\\x1f]*.[\\s\\S]$"}}},
    {"properties": {"a": {"pattern": "\\x1b"}}, "additionalProperties": False},
    {"properties": {"x-guidance": {"type": "string"}}},
    {"type": "object", "required": ["a", "b"], "minProperties": 3, "maxProperties": 5},
]


@pytest.mark.parametrize("schema", TAKEN, ids=json.dumps)
def test_what_only_looks_alike_is_taken(
    make_output: Callable[[], Output], schema: dict[str, Any]
) -> None:
    assert start(make_output(), json.dumps(schema)).standing is Standing.OPEN
