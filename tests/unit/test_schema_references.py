"""References lead to schemas that were prepared, whatever way they are written, or are refused."""

import json
import re
from typing import Any

import pytest

from coordinator.constraint.json_schema import prepare_schema

WRONG = {"const": 9007199254740993}
"""Is refused wherever it is taken for a schema, and is fine as data."""

ANCHOR_OF_DRAFT_7 = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$ref": "#x",
    "definitions": {"a": {"$id": "#x"}},
}

REFUSED: list[tuple[Any, str]] = [
    (
        {
            "properties": {
                "default": {"default": WRONG},
                "a": {"$ref": "#/properties/default/default"},
            }
        },
        "at #/properties/a/$ref is not supported: it leads into default",
    ),
    ({"$ref": "#/%64efault", "default": WRONG}, "it leads into default"),
    ({"$ref": "#/$defs/a/const", "$defs": {"a": {"const": {"format": "time"}}}}, "into const"),
    ({"$ref": "#/$defs/a/enum/0", "$defs": {"a": {"enum": [{}]}}}, "it leads into enum"),
    ({"$ref": "#/x/examples/0", "x": {"examples": [WRONG]}}, "it leads into examples"),
    ({"$ref": "#/x/y", "x": {"y": WRONG}}, "const 9007199254740993 at #/x/y/const"),
    ({"$ref": "#/properties", "properties": {}}, "it leads to no schema"),
    ({"$ref": "#/allOf", "allOf": [{}]}, "it leads to no schema"),
    ({"$ref": "#/type", "type": "string"}, "it leads to no schema"),
    ({"$ref": "#/allOf/01", "allOf": [{}, {}]}, "$ref #/allOf/01 at #/$ref"),
    ({"$ref": "#/allOf/2", "allOf": [{}, {}]}, "it leads nowhere"),
    ({"$ref": "#/$defs/~2", "$defs": {"a": {}}}, "it leads nowhere"),
    ({"$ref": "#x"}, "there is no such anchor"),
    ({"$ref": "http://json-schema.org/draft-07/schema#"}, "it leads out of the schema"),
    ({"$ref": "json-schema:///#/default", "default": WRONG}, "it leads out of the schema"),
    ({"$id": "x", "$ref": "x#/default", "default": WRONG}, "it leads into default"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$id": "x", "$ref": "#/$defs/b"}, "b": {}}}, "nowhere"),
]


@pytest.mark.parametrize(("schema", "said"), REFUSED)
def test_what_leads_to_no_schema_of_the_document_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        prepare_schema(json.dumps(schema))


UNCHANGED: list[Any] = [
    {"$ref": "#/$defs/a", "$defs": {"a": {}}},
    {"type": "array", "items": {"$ref": "#"}},
    {"$ref": "#/definitions/a%20b~1c~0d", "definitions": {"a b/c~d": {}}},
    {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {}}}},
    {"$ref": "#/$defs/default", "$defs": {"default": {}}},
    {"properties": {"const": {}, "a": {"$ref": "#/properties/const"}}},
    {"$ref": "#/items/0", "items": [{}]},
    {"$ref": "#/anyOf/1/not", "anyOf": [{}, {"not": {}}]},
    {"type": "object", "x-notes": {**WRONG, "$ref": "http://elsewhere"}},
]


@pytest.mark.parametrize("schema", UNCHANGED, ids=json.dumps)
def test_a_plain_pointer_is_left_as_it_is(schema: Any) -> None:
    text = json.dumps(schema)
    assert prepare_schema(text).text == text


REWRITTEN: list[tuple[Any, Any]] = [
    ({"$ref": "#/%24defs/é", "$defs": {"é": {}}}, {"$ref": "#/$defs/%C3%A9", "$defs": {"é": {}}}),
    ({"$id": "T", "items": {"$ref": "T"}}, {"items": {"$ref": "#"}}),
    ({"$ref": "#x", "$defs": {"a": {"$anchor": "x"}}}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
    (
        ANCHOR_OF_DRAFT_7,
        {**ANCHOR_OF_DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": {}}},
    ),
    ({"$id": "https://example.com/x.json", "type": "null"}, {"type": "null"}),
    ({"$id": "no URI [", "items": {"$ref": "no URI ["}}, {"items": {"$ref": "#"}}),
    (
        {
            "$id": "http://x/y/root.json",
            "items": {"$ref": "root.json#/$defs/a"},
            "$defs": {"a": {}},
        },
        {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {}}},
    ),
    (
        {"$id": "http://x/y/", "$ref": "http://x/b/a", "$defs": {"a": {"$id": "/b/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
    ),
    (
        {"$id": "x/y", "$defs": {"a": {"$id": "z", "items": {"$ref": "y"}}}, "$ref": "y"},
        {"$defs": {"a": {"items": {"$ref": "#"}}}, "$ref": "#"},
    ),
    (
        {"$ref": "b", "$defs": {"a": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {}}}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a/$defs/c", "$defs": {"c": {}}}}},
    ),
]


@pytest.mark.parametrize(("schema", "expected"), REWRITTEN, ids=json.dumps)
def test_other_ways_to_name_a_schema_become_plain_pointers(schema: Any, expected: Any) -> None:
    assert json.loads(prepare_schema(json.dumps(schema)).text) == expected


def test_what_is_referred_to_in_an_unknown_keyword_is_prepared_as_well() -> None:
    target = {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}
    text = json.dumps(
        {
            "$ref": "#/x/y",
            "x": {
                "y": {
                    **target,
                    "items": {"$ref": "#/x/z"},
                },
                "z": target,
            },
        }
    )
    schema = json.loads(prepare_schema(text).text)
    for name in ("y", "z"):
        assert schema["x"][name]["minimum"] > 1
