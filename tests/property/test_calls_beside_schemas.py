"""A model whose calls are bare JSON may call a tool or write a document of a schema."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from coordinator.constraint.messages import Standing
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    joined_parts,
)
from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats import FORMATS
from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.reader import OutputReader
from stagecoach.contract.errors import InvalidArgumentError
from tests.json_outputs import Output, accepts, output_maker, start, walk

FORMS = [one for one in FORMATS if one.is_whole_output]
LLAMA = next(one for one in FORMS if one.is_json_document)
TOOLS = (
    Tool(
        name="true_weather",
        parameters='{"type": "object", "properties": {"days": {"type": "integer"}},'
        ' "required": ["days"]}',
    ),
    Tool(name="city"),
    Tool(
        name="named",
        parameters='{"type": "object", "properties": {"p": {"$ref": "#/$defs/p"}},'
        ' "required": ["p"], "$defs": {"p": {"type": "boolean"}}}',
    ),
)
USE = ToolUse(tools=TOOLS)
CALLS = {
    "llama_json": [
        '{"name": "true_weather", "parameters": {"days": 3}}',
        '{"name":"city","parameters":{}}',
        '{\n  "name" : "named", "parameters": {"p": true}\n}',
    ],
    "llama_python": ["[true_weather(days=3)]", "[city(), named(p=true)]"],
}
NO_CALLS = {
    "llama_json": [
        '{"name": "true_weather", "parameters": {"days": "3"}}',
        '{"name": "other", "parameters": {}}',
        '{"name": "city", "parameters": {"x": 1}}',
        "Hello.",
    ],
    "llama_python": ['[true_weather(days="3")]', "[other()]", "Hello."],
}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "n": {"type": "number"}},
        "required": ["name"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"name": {"enum": ["city", "town"]}, "parameter": {"type": "object"}},
        "required": ["name", "parameter"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": ["boolean", "null", "string", "integer"]}, "maxItems": 3},
    {"enum": ["name", True, None, {"name": "city"}, ["true_weather"]]},
    {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "number"}, {"type": "boolean"}]},
    {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/at"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {"at": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    },
]


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


def grammar(form: CallFormat, schema: Any, use: ToolUse = USE) -> str:
    wanted = Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema))
    made = output_grammar(Dialect(calls=form), {}, use=use, content=wanted)
    assert made is not None
    return made.text


def read(form: CallFormat, text: str, cut: int = 1) -> tuple[OutputPart, ...]:
    reader = OutputReader(
        Dialect(calls=form),
        tools={tool.name: () for tool in TOOLS},
        starts_in_reasoning=False,
        new_id=lambda: "new",
    )
    parts: list[OutputPart] = []
    for place in range(0, len(text), cut):
        parts += reader.push(text[place : place + cut])
    return joined_parts([*parts, *reader.flush()])


@pytest.mark.parametrize("form", FORMS, ids=lambda one: one.label)
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_document_or_a_call_may_be_written_and_is_read_as_what_it_is(
    make_output: Callable[[], Output], form: CallFormat, schema: dict[str, Any]
) -> None:
    text = grammar(form, schema)
    alone = json.dumps(schema)
    validator = jsonschema_rs.validator_for(schema)
    documents = set[str]()
    for seed in range(12):
        document = walk(make_output(), alone, random.Random(f"{alone} {seed}"))
        if document is not None:
            documents.add(document)
    assert documents
    for document in documents:
        assert accepts(make_output(), text, document, GrammarKind.OUTPUT), document
        parts = read(form, document)
        assert all(isinstance(part, ContentPart) for part in parts)
        validator.validate(json.loads(document))
        assert "".join(part.text for part in parts if isinstance(part, ContentPart)) == document
    for call in CALLS[form.label]:
        assert accepts(make_output(), text, call, GrammarKind.OUTPUT), call
        parts = read(form, call)
        assert isinstance(parts[0], CallBegins)
        assert isinstance(parts[-1], CallEnds)
        assert not any(isinstance(part, ContentPart) for part in parts)
    for call in NO_CALLS[form.label]:
        assert not accepts(make_output(), text, call, GrammarKind.OUTPUT), call


@pytest.mark.parametrize("cut", [1, 2, 1000])
def test_a_call_in_any_spacing_is_read(cut: int) -> None:
    for text in CALLS["llama_json"]:
        name, arguments = json.loads(text).values()
        parts = read(LLAMA, text, cut)
        assert [part.name for part in parts if isinstance(part, CallBegins)] == [name]
        written = "".join(part.text for part in parts if isinstance(part, ArgumentsPart))
        assert json.loads(written) == arguments
    almost = '{"na me": "city", "parameters": {}}'
    assert read(LLAMA, almost, cut) == (ContentPart(almost),)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"x": {"type": "integer"}}},
        {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        {"properties": {"name": {"const": "city"}, "parameters": {"type": "array"}}},
        True,
    ],
    ids=json.dumps,
)
def test_a_schema_whose_documents_may_begin_as_a_call_is_refused(
    make_output: Callable[[], Output], schema: Any
) -> None:
    state = start(make_output(), grammar(LLAMA, schema), GrammarKind.OUTPUT)
    assert state.standing is Standing.BROKEN
    assert state.field == "grammar.json_schema"
    assert 'may begin with {"name":"' in state.error
    required = ToolUse(tools=TOOLS, mode=ToolMode.REQUIRED)
    text = grammar(LLAMA, schema, required)
    assert start(make_output(), text, GrammarKind.OUTPUT).standing is Standing.OPEN


@pytest.mark.parametrize("form", FORMS, ids=lambda one: one.label)
@pytest.mark.parametrize(
    "wanted",
    [
        Grammar(kind=GrammarKind.JSON_OBJECT),
        Grammar(kind=GrammarKind.REGEX, text="a+"),
        Grammar(kind=GrammarKind.LARK, text='start: "a"'),
    ],
    ids=lambda one: one.kind.value,
)
def test_other_grammars_beside_tools_that_may_be_called_are_refused(
    form: CallFormat, wanted: Grammar
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        output_grammar(Dialect(calls=form), {}, use=USE, content=wanted)
    assert caught.value.details == {
        "field": wanted.field,
        "other_field": "prompt.chat.tool_choice",
    }


def test_a_schema_that_cannot_be_kept_to_leaves_a_call_its_form(
    make_output: Callable[[], Output],
) -> None:
    hard = '{"type": "object", "properties": {"x": {"type": "string", "pattern": "(?<=a)b"}}}'
    text = grammar(LLAMA, SCHEMAS[0], ToolUse(tools=(Tool(name="city", parameters=hard),)))
    for taken in ('{"name": "city", "parameters": {"y": 3}}', '{"city": "Oslo"}'):
        assert accepts(make_output(), text, taken, GrammarKind.OUTPUT), taken
    assert not accepts(make_output(), text, '{"x": "b"}', GrammarKind.OUTPUT)
    strict = ToolUse(tools=(Tool(name="city", parameters=hard, is_strict=True),))
    state = start(make_output(), grammar(LLAMA, SCHEMAS[0], strict), GrammarKind.OUTPUT)
    assert state.field == "prompt.chat.tools[0].parameters"


def test_text_without_a_schema_is_a_call_in_any_spacing_or_none(
    make_output: Callable[[], Output],
) -> None:
    made = output_grammar(Dialect(calls=LLAMA), {}, use=USE)
    assert made is not None
    for text in (*CALLS["llama_json"][:2], "Hello.", '{"name": "other", "parameters": 1}'):
        assert accepts(make_output(), made.text, text, GrammarKind.OUTPUT), text
    for text in (
        '{"name":"city","parameters":[]}',
        '{"name" : "city","parameters" : []}',
        '{"name": "true_weather", "parameters": {"days": 1.5}}',
    ):
        assert not accepts(make_output(), made.text, text, GrammarKind.OUTPUT), text


def test_numbers_of_calls_are_guarded_in_any_spacing(make_output: Callable[[], Output]) -> None:
    half = '{"type": "object", "properties": {"x": {"type": "number", "maximum": 0.5}}}'
    use = ToolUse(tools=(Tool(name="f", parameters=half),))
    free = output_grammar(Dialect(calls=LLAMA), {}, use=use)
    assert free is not None
    digits = "1234567890" * 3
    for text in (free.text, grammar(LLAMA, SCHEMAS[0], use)):
        for form in (
            '{"name": "f", "parameters": {"x": %s}}',
            '{"name":"f","parameters":{"x":%s}}',
        ):
            assert accepts(make_output(), text, form % "0.25", GrammarKind.OUTPUT)
            for number in ("0.75", f"0.{digits}"):
                assert not accepts(make_output(), text, form % number, GrammarKind.OUTPUT)
    assert accepts(make_output(), free.text, f"Pi has 3.{digits} digits.", GrammarKind.OUTPUT)
