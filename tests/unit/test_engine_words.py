"""What is said of a grammar has no text that the client did not write."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.core.grammar import GrammarKind
from tests.json_outputs import Output, output_maker, start


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(?=a)a", "look-around, including look-ahead and look-behind, is not supported: (?="),
        ("a/(", "unclosed group: ("),
        ("a\n{2,1}", "invalid repetition count range, the start must be <= the end: {2,1}"),
        (r"\p{Foo}", r"Unicode property not found: \p{Foo}"),
        (r"(a)\1", r"backreferences are not supported: \1"),
    ],
)
def test_of_an_expression_the_wrong_part_is_shown(
    make_output: Callable[[], Output], text: str, said: str
) -> None:
    assert start(make_output(), text, GrammarKind.REGEX).error == said


def test_of_a_long_part_the_beginning_is_shown(make_output: Callable[[], Output]) -> None:
    error = start(make_output(), "(a" * 300 + ")" * 300, GrammarKind.REGEX).error
    assert error.startswith("exceed the maximum number of nested parentheses/brackets")
    assert error.endswith("...")
    assert len(error) < 200


def test_a_lark_grammar_is_quoted_with_the_place(make_output: Callable[[], Output]) -> None:
    error = start(make_output(), "start: nothing", GrammarKind.LARK).error
    assert error.startswith("at 1(8): unknown name")
    assert "1 | start: nothing" in error


SCHEMAS: list[tuple[dict[str, Any], str]] = [
    (
        {"patternProperties": {"^a": {}, "b$": {"minimum": 5}}, "additionalProperties": False},
        "patternProperties ^a and b$ is not supported: one key may match both",
    ),
    (
        {"type": "string", "pattern": "^.$", "minLength": 2},
        "Unsatisfiable schema: no string conforms to all that is asked for",
    ),
    (
        {"const": "x", "format": "date"},
        "Unsatisfiable schema: no string conforms to all that is asked for",
    ),
    (
        {"$ref": "#", "type": "object"},
        "circular references with sibling keys are not supported: #",
    ),
]


@pytest.mark.parametrize(("schema", "said"), SCHEMAS, ids=str)
def test_of_a_schema_patterns_are_shown_as_they_were_written(
    make_output: Callable[[], Output], schema: dict[str, Any], said: str
) -> None:
    assert start(make_output(), json.dumps(schema)).error == said
