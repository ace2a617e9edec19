"""What the schemas of tools become: closed objects, parameters one by one, or an error by name."""

import json
from typing import Any

import pytest

from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.qwen_xml import QWEN_XML
from coordinator.dialogue.lark_rules import MAX_PART_CHARS
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.tool_schemas import object_schema, parameters, text_parameters
from stagecoach.contract.errors import InvalidArgumentError


def tool(schema: object) -> Tool:
    return Tool(name="f", parameters=schema if isinstance(schema, str) else json.dumps(schema))


def test_a_tool_without_a_schema_takes_no_arguments() -> None:
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    assert object_schema(Tool(name="f"), "field") == closed
    assert object_schema(tool({}), "field") == closed


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {}}}}},
        {"type": "object", "anyOf": [{"properties": {"a": {}}}]},
        {"type": "object", "patternProperties": {"^x": {}}},
    ],
    ids=lambda one: str(sorted(one)),
)
def test_a_schema_that_says_what_else_is_allowed_stays_open(schema: dict[str, Any]) -> None:
    found = object_schema(tool(schema), "field")
    assert found.get("additionalProperties", True) == schema.get("additionalProperties", True)


@pytest.mark.parametrize(
    ("schema", "field", "words"),
    [
        ("{", "field", "is not JSON"),
        ([1], "field", "is a JSON array"),
        (True, "field", "must be a schema of an object"),
        ({"type": "array"}, "field.type", "must be object"),
        ("[" * 100_000, "field", "nested deeper than 64 levels"),
        ('{"a":' * 90 + "1" + "}" * 90, "field", "nested deeper than 64 levels"),
    ],
    ids=["no JSON", "a list", "a boolean", "an array", "deep and cut", "deep"],
)
def test_what_is_no_schema_of_an_object_is_named(schema: object, field: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        object_schema(tool(schema), "field")
    assert caught.value.field == field


def test_plain_strings_alone_are_written_without_quotes() -> None:
    properties = {
        "plain": {"type": "string", "description": "x", "default": "y"},
        "bounded": {"type": "string", "maxLength": 3},
        "choice": {"enum": ["a"]},
        "nullable": {"type": ["string", "null"]},
        "any": True,
    }
    assert text_parameters(tool({"properties": properties})) == {"plain"}


def test_a_parameter_brings_the_definitions_that_it_refers_to_and_no_others() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/d"}, "b": {"type": "integer"}},
        "required": ["b"],
        "$defs": {"d": {"type": "null"}},
    }
    first, second = parameters(object_schema(tool(schema), "field"))
    assert first.schema == {"$ref": "#/$defs/d", "$defs": {"d": {"type": "null"}}}
    assert (second.schema, second.is_required) == ({"type": "integer"}, True)


def test_definitions_that_many_parameters_repeat_do_not_grow_without_bound() -> None:
    large = {"d": {"enum": ["x" * 50_000]}}
    properties = {f"p{index}": {"$ref": "#/$defs/d"} for index in range(1000)}
    use = ToolUse(tools=(tool({"properties": properties, "$defs": large}),), mode=ToolMode.REQUIRED)
    with pytest.raises(InvalidArgumentError, match=str(MAX_PART_CHARS)) as caught:
        output_grammar(Dialect(calls=QWEN_XML), {}, use=use)
    assert caught.value.field is not None
    assert caught.value.field.startswith("prompt.chat.tools[0].parameters.properties.p")
