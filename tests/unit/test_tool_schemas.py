"""What the schemas of tools become: closed objects, parameters one by one, or an error by name."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.formats.gemma import GEMMA_4
from coordinator.dialogue.formats.qwen_xml import QWEN_XML
from coordinator.dialogue.formats.seed_oss import SEED_OSS
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
        {"type": "object", "minProperties": 1},
        {"const": {"a": 1}},
        {"enum": [{"a": 1}, {"b": 2}]},
    ],
    ids=lambda one: str(sorted(one)),
)
def test_a_schema_that_says_what_else_is_allowed_stays_open(schema: dict[str, Any]) -> None:
    found = object_schema(tool(schema), "field")
    assert found.get("additionalProperties", True) == schema.get("additionalProperties", True)


def test_what_a_schema_requires_is_allowed_without_a_word_about_it() -> None:
    schema = {"properties": {"a": {"type": "string"}}, "required": ["b", "a"]}
    found = object_schema(tool(schema), "field")
    assert found["properties"] == {"a": {"type": "string"}, "b": True}
    assert found["additionalProperties"] is False
    assert [one.is_required for one in parameters(found)] == [True, True]
    closed = object_schema(tool({**schema, "additionalProperties": False}), "field")
    assert closed["properties"] == schema["properties"]


@pytest.mark.parametrize(
    "said",
    [
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"minProperties": 1},
        {"maxProperties": 1},
        {"$ref": "#/$defs/a", "$defs": {"a": {"required": ["a"]}}},
        {"const": {"a": 1}},
        {"required": ["c"], "additionalProperties": {}},
        {"required": "a"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_parameters_one_by_one_are_not_held_to_what_is_said_of_all(said: dict[str, Any]) -> None:
    keyword = next(iter(said))
    words = rf"\[0\].parameters: {re.escape(keyword)} is not"
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}} | said
    dialect = Dialect(calls=QWEN_XML)
    for mode, is_strict in ((ToolMode.REQUIRED, False), (ToolMode.AUTO, True)):
        one = replace(tool(schema), is_strict=is_strict)
        with pytest.raises(InvalidArgumentError, match=words):
            output_grammar(dialect, {}, use=ToolUse(tools=(one,), mode=mode))
    assert output_grammar(dialect, {}, use=ToolUse(tools=(tool(schema),))) is not None


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


@pytest.mark.parametrize("mode", ToolMode)
@pytest.mark.parametrize(("form", "name"), [(GEMMA_4, "xml:lang"), (SEED_OSS, "a>b")])
def test_a_parameter_that_could_not_be_read_back_is_refused(
    form: CallFormat, name: str, mode: ToolMode
) -> None:
    schema = {"properties": {"a": {"type": "integer"}, name: {"type": "string"}}}
    use = ToolUse(tools=(tool(schema),), mode=mode)
    with pytest.raises(InvalidArgumentError, match="by which this model ends names") as caught:
        output_grammar(Dialect(calls=form), {}, use=use)
    assert caught.value.field == f"prompt.chat.tools[0].parameters.properties.{name}"
