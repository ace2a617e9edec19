"""Keys of objects conform to `propertyNames`, however it is written."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from tests.json_outputs import Output, assert_takes, output_maker, start, walk


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


INTEGER = {"type": "integer"}
COLOR = {"enum": ["red", "blue"], "title": "Color", "type": "string"}
CASES: list[tuple[Any, list[str], list[str]]] = [
    # Of zod's records.
    ({"propertyNames": {"type": "string"}}, ['{"a":1,"é":2}', "{}"], ['{"a":"x"}']),
    (
        {"propertyNames": {"type": "string", "enum": ["a", "b"]}, "required": ["a", "b"]},
        ['{"a":1,"b":2}'],
        ['{"a":1}', '{"a":1,"b":2,"c":3}', '{"a":"x","b":2}'],
    ),
    (
        {"propertyNames": {"anyOf": [{"type": "string", "const": "x"}, {"const": "y"}]}},
        ['{"x":1,"y":2}', '{"y":1}', "{}"],
        ['{"z":1}', '{"x":"s"}'],
    ),
    ({"propertyNames": {"minLength": 2, "maxLength": 3}}, ['{"ab":1}'], ['{"a":1}', '{"abcd":1}']),
    ({"propertyNames": {"pattern": r"^-?\d+$"}}, ['{"5":1}'], ['{"a":1}', '{"5":"x"}']),
    # Of pydantic's dictionaries.
    (
        {"propertyNames": {"$ref": "#/$defs/Color"}, "$defs": {"Color": COLOR}},
        ['{"red":1,"blue":2}', '{"blue":2}', "{}"],
        ['{"green":1}', '{"red":"x"}'],
    ),
    (
        {
            "propertyNames": {"allOf": [{"$ref": "#/$defs/C"}], "maxLength": 3},
            "$defs": {"C": COLOR},
        },
        ['{"red":1}'],
        ['{"blue":1}'],
    ),
    ({"propertyNames": {"format": "date"}}, ['{"2024-02-29":1}'], ['{"2023-02-29":1}', '{"a":1}']),
    ({"propertyNames": {"format": "ipv4"}}, ['{"1.2.3.4":1}'], ['{"1.2.3.256":1}']),
    (
        {"propertyNames": {"format": "uri", "minLength": 1}},
        ['{"https://a.b/c":1}'],
        ['{"":1}', '{"a":1}'],
    ),
    ({"propertyNames": {"format": "path"}}, ['{"a":1}', '{"":1}'], ['{"a":"x"}']),
    # Beside other keywords.
    ({"propertyNames": {}, "minProperties": 1}, ['{"a":1}'], ["{}"]),
    ({"propertyNames": True}, ['{"a":1}'], ['{"a":"x"}']),
    (
        {"propertyNames": {"enum": ["a", "b"]}, "properties": {"a": {"type": "null"}, "c": {}}},
        ['{"a":null,"b":1}'],
        ['{"a":1}', '{"c":1}', '{"b":null}'],
    ),
    (
        {"propertyNames": {"pattern": "^[ab]$"}, "properties": {"a": {"type": "null"}, "c": {}}},
        ['{"a":null,"b":1}'],
        ['{"a":1}', '{"c":1}'],
    ),
    (
        {"propertyNames": {"enum": ["ab", "b"]}, "patternProperties": {"^a": {"type": "null"}}},
        ['{"ab":null,"b":1}'],
        ['{"ab":1}', '{"ac":null}'],
    ),
    (
        {"propertyNames": {"enum": ["a"]}, "allOf": [{"properties": {"b": {}}}]},
        ['{"a":1}'],
        ['{"b":1}'],
    ),
]


@pytest.mark.parametrize(("keywords", "taken", "refused"), CASES, ids=str)
def test_keys_are_those_that_are_asked_for(
    make_output: Callable[[], Output],
    keywords: dict[str, Any],
    taken: list[str],
    refused: list[str],
) -> None:
    schema = {"type": "object", "additionalProperties": INTEGER, **keywords}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    text = json.dumps(schema)
    assert all(validator.is_valid(json.loads(document)) for document in taken)
    assert not any(validator.is_valid(json.loads(document)) for document in refused)
    assert_takes(make_output, text, taken, refused)
    generator = random.Random(3)
    for ended in filter(None, (walk(make_output(), text, generator) for _ in range(3))):
        assert validator.is_valid(json.loads(ended)), ended


WRONG: list[tuple[Any, str]] = [
    (False, "no key conforms"),
    ({"enum": []}, "no key conforms"),
    ({"enum": [1], "type": "integer"}, "no key conforms"),
    ({"enum": ["a", "b"], "minLength": 2}, "no key conforms"),
    (5, "it is no schema"),
    ({"not": {"const": "a"}}, "it has not, which is not followed"),
    ({"oneOf": [{"const": "a"}]}, "it has oneOf"),
    ({"$ref": "#/properties/a/propertyNames"}, "it leads to itself"),
    ({"pattern": "^a", "enum": ["a"]}, "of names, a pattern and a format"),
    ({"pattern": "^a", "format": "date"}, "of names, a pattern and a format"),
    ({"pattern": "^a", "minLength": 2}, "of a pattern, a format and lengths"),
    ({"anyOf": [{"pattern": "^a"}, {"const": "b"}]}, "of several forms"),
    ({"format": "ipv6"}, "format ipv6 is not supported for the keys"),
    ({"pattern": "^(?=a)", "maxLength": 2}, "(?="),
    ({"minLength": "2"}, "minLength in it is no whole number"),
]


@pytest.mark.parametrize(("names", "said"), WRONG, ids=str)
def test_what_cannot_be_kept_to_is_refused_by_name(
    make_output: Callable[[], Output], names: Any, said: str
) -> None:
    schema = {"properties": {"a": {"type": "object", "propertyNames": names}}}
    error = start(make_output(), json.dumps(schema)).error
    assert " at #/properties/a/propertyNames" in error
    assert said in error
