"""What a Lark grammar may ask for here, and what is refused by name."""

import re
from collections.abc import Callable

import pytest

from coordinator.constraint.lark_grammar import check_lark
from coordinator.constraint.messages import Standing
from coordinator.core.grammar import GrammarKind
from tests.json_outputs import Output, accepts, output_maker, start

REFUSED = [
    ('start: %json {"const": 9007199254740993}', "%json"),
    ("start: %jsontrue", "%json"),
    ('%regex {"substring_chars": "x"} %json {}', "%json"),
    ('start: "a" // foo /\nx: %json {}', "%json"),
    ('start: "a" <|im_end|> "b"', "<|im_end|>"),
    ("start: <[*]>", "<[*]>"),
    ("start: <[^1-4,7]>", "<[^1-4,7]>"),
    ("a[temperature=0]: /x/", "attribute temperature"),
    ("\n\n?a [ lazy , temperature = 0 ]: /x/", "attribute temperature"),
    ('!a.2[lazy, stop="x"]: /x/', "attribute stop"),
    ('start: b\n  // x\nb[capture]: "x"', "attribute capture"),
    ('b{x}[stop_capture="y"]: /x/', "attribute stop_capture"),
    ('a::_ [capture]: "x"', "attribute capture"),
    ('a[suffix="]:", temperature=1]: /x/', "attribute temperature"),
    ("a[suffix=/]:/, temperature=1]: /x/", "attribute temperature"),
    ('start: %lark { a[temperature=0]: "x" }', "attribute temperature"),
    ('%llguidance {"temperature": 0}', "option temperature of %llguidance"),
    ('%llguidance {} \n %llguidance {"allow_invalid_utf8": true}', "option allow_invalid_utf8"),
    ("%llguidance [", "no JSON follows %llguidance"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_would_be_dropped_in_silence_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_lark(text)


TAKEN = [
    'start: "a" // %json {}',
    'start: "a"i /b/i # <x>',
    r'start: "%json {} <x>" /%json <y>\/ z/ "\""',
    "start: x [capture]\nx: /x/\ncapture: /y/\n",
    'start: temperature stop\ntemperature: "1" -> lazy\nstop: "2"',
    'start: x\nx: "a" | "b"\n | [capture, stop]',
    '%llguidance {"no_forcing": true}\n%ignore /[ \\t]+/\nstart: "x"',
    'start: %regex {"substring_chars": "<a> %json \\""}',
    "%import common.INT\nstart: INT",
    'start: LT\nLT: "<" /[^<>]+/ ">"',
]


@pytest.mark.parametrize("text", TAKEN)
def test_what_only_looks_alike_is_taken(text: str) -> None:
    check_lark(text)


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


HONOURED = [
    ('start: a "b"\na[lazy]: /[a-z]+x/', {"axb": True, "axxb": False}),
    ('start: a "b"\na[suffix="x"]: /[a-z]*/', {"foxb": True, "foxxb": False, "fob": False}),
    ('start: a "b"\na[max_tokens=2]: /[ac]+/', {"acb": True, "acab": False}),
    ('%llguidance {"allow_initial_skip": true}\n%ignore " "\nstart: "b"', {" b": True}),
    (
        '%llguidance {"ignore_once": true}\n%ignore / {1,2}/\nstart: "a" "b"',
        {"a  b": True, "a   b": False},
    ),
]


@pytest.mark.parametrize(("text", "documents"), HONOURED)
def test_the_attributes_and_options_that_are_taken_are_honoured(
    make_output: Callable[[], Output], text: str, documents: dict[str, bool]
) -> None:
    for document, expected in documents.items():
        assert accepts(make_output(), text, document, GrammarKind.LARK) is expected, document


def test_the_internal_form_of_the_engine_is_no_lark(make_output: Callable[[], Output]) -> None:
    """The engine takes a text in braces for grammars of its own form, schemas among them."""
    text = '{"grammars": [{"json_schema": {"const": 9007199254740993}}]}'
    state = start(make_output(), text, GrammarKind.LARK)
    assert state.standing is Standing.BROKEN
    assert "expecting rule" in state.error
