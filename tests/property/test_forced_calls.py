"""Calls of tools that are forced: whatever the model draws, they have their format and schema."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest

from coordinator.constraint.messages import Standing
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_parts import ArgumentsPart, CallBegins, joined_parts
from coordinator.core.tools import Tool, ToolCall, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats import FORMATS, GENERIC
from coordinator.dialogue.formats.call_format import CallFormat, IdForm
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.reader import OutputReader
from coordinator.dialogue.thinking import Thinking
from coordinator.dialogue.tool_schemas import text_parameters
from coordinator.dialogue.written_calls import written_calls
from tests.json_outputs import Output, accepts, output_maker, start, walk
from tests.written_outputs import written_output

NUM_WALKS = 6
ALL = [*FORMATS, GENERIC]
THINKING = Thinking("<think>", "</think>")
SCHEMAS: dict[str, dict[str, Any]] = {
    "no_arguments": {"type": "object", "properties": {}},
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city", "days"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "at": {"$ref": "#/$defs/point"},
            "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            "note": {"type": ["string", "null"], "maxLength": 5},
        },
        "required": ["at"],
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "number", "exclusiveMinimum": 0.5}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
}
TOOLS = tuple(Tool(name=name, parameters=json.dumps(one)) for name, one in SCHEMAS.items())
AS_THEY_ARE = {tool.name: text_parameters(tool) for tool in TOOLS}
CALLS = [
    ToolCall(call_id="abcdefgh1", name="weather", arguments='{"city": "a \\"b\\" <c", "days": 3}'),
    ToolCall(call_id="abcdefgh2", name="no_arguments", arguments="{}"),
]


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


def grammar(
    form: CallFormat, use: ToolUse | None, thinking: Thinking | None = THINKING, **options: Any
) -> str:
    made = output_grammar(Dialect(calls=form, thinking=thinking), {}, use=use, **options)
    assert made is not None
    assert made.kind is GrammarKind.OUTPUT
    return made.text


def read_calls(form: CallFormat, text: str) -> list[tuple[str, Any]]:
    reader = OutputReader(
        Dialect(calls=form, thinking=THINKING),
        tools=AS_THEY_ARE,
        starts_in_reasoning=False,
        new_id=lambda: "new",
    )
    parts = joined_parts([*reader.push(text), *reader.flush()])
    names = [part.name for part in parts if isinstance(part, CallBegins)]
    arguments = [json.loads(part.text) for part in parts if isinstance(part, ArgumentsPart)]
    assert len(names) == len(arguments) == reader.num_calls
    return list(zip(names, arguments, strict=True))


@pytest.mark.parametrize("form", ALL, ids=lambda one: one.label)
@pytest.mark.parametrize("name", SCHEMAS)
def test_forced_calls_of_random_tokens_conform(
    make_output: Callable[[], Output], form: CallFormat, name: str
) -> None:
    use = ToolUse(
        tools=TOOLS,
        mode=ToolMode.REQUIRED,
        callable_names=frozenset({name}),
        allows_several=False,
    )
    text = grammar(form, use, None)
    validator = jsonschema_rs.validator_for(SCHEMAS[name])
    num_whole = 0
    for seed in range(NUM_WALKS):
        generator = random.Random(f"{form.label} {name} {seed}")
        marks = f'{form.begin}{form.end}"}}]>'.encode(errors="ignore")
        likely = frozenset(bytes([byte]) for byte in marks)
        output = walk(make_output(), text, generator, likely, GrammarKind.OUTPUT)
        if output is None:
            continue
        calls = read_calls(form, output)
        assert [called for called, _ in calls] == [name]
        validator.validate(calls[0][1])
        num_whole += 1
    assert num_whole or name != "no_arguments"


@pytest.mark.parametrize("form", ALL, ids=lambda one: one.label)
def test_what_may_be_written_with_tools(
    make_output: Callable[[], Output], form: CallFormat
) -> None:
    nine = form.id_form is not IdForm.TEN
    ids = [one if nine else replace(one, call_id=f"{one.call_id}0") for one in CALLS]
    calls = written_calls(ids[: 2 if form.next else 1], form, AS_THEY_ARE)
    said = "" if form.is_whole_output else "Let me look. "
    auto = grammar(form, ToolUse(tools=TOOLS))
    required = grammar(form, ToolUse(tools=TOOLS, mode=ToolMode.REQUIRED))
    for text in (
        written_output(form, content=said, calls=calls),
        written_output(form, thought="<think>\nHm <b>.</think>", content=said, calls=calls),
        written_output(form, content="No call, 12345678901."),
    ):
        assert accepts(make_output(), auto, text, GrammarKind.OUTPUT), text
    assert accepts(make_output(), required, calls, GrammarKind.OUTPUT)
    assert not accepts(make_output(), required, "No call.", GrammarKind.OUTPUT)
    wrong = calls.replace("weather", "whether")
    assert wrong != calls
    assert form.is_whole_output or not accepts(make_output(), auto, wrong, GrammarKind.OUTPUT)
    assert not accepts(make_output(), required, wrong, GrammarKind.OUTPUT)


def test_content_keeps_to_a_schema_after_thinking(make_output: Callable[[], Output]) -> None:
    wanted = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"const": 7}')
    text = grammar(GENERIC, None, content=wanted)
    for taken in ("7", "<think>Is it 8?</think>7"):
        assert accepts(make_output(), text, taken, GrammarKind.OUTPUT), taken
    for refused in ("8", "<think>7</think>8", "<think>7"):
        assert not accepts(make_output(), text, refused, GrammarKind.OUTPUT), refused
    inside = grammar(GENERIC, None, content=wanted, starts_in_reasoning=True)
    assert accepts(make_output(), inside, "Is it 8?</think>7", GrammarKind.OUTPUT)
    assert not accepts(make_output(), inside, "7", GrammarKind.OUTPUT)


def test_numbers_are_guarded_in_arguments_and_free_outside(
    make_output: Callable[[], Output],
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number", "maximum": 0.5}}}
    use = ToolUse(tools=(Tool(name="f", parameters=json.dumps(schema)),))
    text = grammar(GENERIC, use)
    digits = "1234567890" * 3
    assert accepts(make_output(), text, f"Pi has 3.{digits} digits.", GrammarKind.OUTPUT)

    def call(number: str) -> str:
        return f'<tool_call>\n{{"name": "f", "arguments": {{"x": {number}}}}}\n</tool_call>'

    assert accepts(make_output(), text, call("0.25"), GrammarKind.OUTPUT)
    assert not accepts(make_output(), text, call(f"0.{digits}"), GrammarKind.OUTPUT)
    assert not accepts(make_output(), text, call("0.75"), GrammarKind.OUTPUT)


@pytest.mark.parametrize("mode", ToolMode)
@pytest.mark.parametrize("is_strict", [False, True])
def test_a_schema_that_cannot_be_kept_to_is_refused_where_it_must_be(
    make_output: Callable[[], Output], mode: ToolMode, is_strict: bool
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?<=a)b"}}}
    tool = Tool(name="f", parameters=json.dumps(schema), is_strict=is_strict)
    text = grammar(GENERIC, ToolUse(tools=(TOOLS[0], tool), mode=mode))
    state = start(make_output(), text, GrammarKind.OUTPUT)
    if mode is ToolMode.AUTO and not is_strict:
        assert state.standing is Standing.OPEN
        return
    assert state.standing is Standing.BROKEN
    assert state.field == "prompt.chat.tools[1].parameters"
    assert "(?<=" in state.error
