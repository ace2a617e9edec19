"""What of a grammar is refused before it reaches a model."""

import pytest

from coordinator.core.grammar import MAX_GRAMMAR_CHARS, MAX_JSON_DEPTH, Grammar, GrammarKind
from coordinator.core.request_spec import RequestSpec, TextPrompt
from stagecoach.contract.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (GrammarKind.REGEX, "", "grammar.regex is empty"),
        (GrammarKind.LARK, "", "grammar.lark is empty"),
        (GrammarKind.JSON_SCHEMA, "", "grammar.json_schema is empty"),
        (GrammarKind.JSON_OBJECT, "{}", "grammar.json_object takes no text"),
        (
            GrammarKind.REGEX,
            "a" * (MAX_GRAMMAR_CHARS + 1),
            f"grammar.regex has {MAX_GRAMMAR_CHARS + 1} characters, at most {MAX_GRAMMAR_CHARS}",
        ),
        (GrammarKind.REGEX, "\ud800", "grammar.regex is not valid Unicode"),
        (GrammarKind.JSON_SCHEMA, "{", "grammar.json_schema is not JSON: Expecting property name"),
        (GrammarKind.JSON_SCHEMA, "NaN", "a JSON number, must be an object or a boolean"),
        (GrammarKind.JSON_SCHEMA, "[]", "a JSON array, must be an object or a boolean"),
        (GrammarKind.JSON_SCHEMA, "null", "a JSON null, must be an object or a boolean"),
        (GrammarKind.JSON_SCHEMA, '"s"', "a JSON string, must be an object or a boolean"),
        (GrammarKind.JSON_SCHEMA, '{"a": ' * 65 + "1" + "}" * 65, "deeper than 64 levels"),
        (GrammarKind.JSON_SCHEMA, "[" * 60_000, "deeper than 64 levels"),
        (GrammarKind.JSON_SCHEMA, "1" * 5000, "is not JSON"),
    ],
)
def test_a_text_that_cannot_be_right_is_refused_by_field(
    kind: GrammarKind, text: str, message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Grammar(kind=kind, text=text)
    assert message in caught.value.message
    assert caught.value.field == f"grammar.{kind.value}"


def test_brackets_inside_strings_nest_nothing() -> None:
    text = '{"const": "' + r"[{\"" * MAX_JSON_DEPTH * 2 + '"}'
    assert Grammar(kind=GrammarKind.JSON_SCHEMA, text=text).text == text


def test_a_schema_may_be_as_deep_as_the_limit() -> None:
    text = '{"not": ' * MAX_JSON_DEPTH + "1" + "}" * MAX_JSON_DEPTH
    assert Grammar(kind=GrammarKind.JSON_SCHEMA, text=text).text == text


@pytest.mark.parametrize("logprobs", [-1, 21])
def test_logprobs_out_of_range_are_refused(logprobs: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be in \[0, 20\]") as caught:
        RequestSpec(prompt=TextPrompt(text="a"), logprobs=logprobs)
    assert caught.value.field == "logprobs"
