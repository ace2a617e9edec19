"""Lark grammars as the grammar engine takes them, without what it would drop in silence.

The engine's dialect has more than a form of text: schemas, which `json_schema` makes exact and a
Lark grammar would not; tokens, of which no text shows; and attributes that ask something of whoever
samples. They are refused by name. In sandboxed processes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, NoReturn

_ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "a request has one temperature for its whole output",
        "stop": "what it matches would stay in the output; suffix allows the same text",
        "capture": "nothing but the output is returned",
        "stop_capture": "nothing but the output is returned",
    }
)
"""Attributes of a rule that are not honoured, and why. `lazy`, `suffix` and `max_tokens` are."""

_OPTIONS = frozenset({"no_forcing", "allow_initial_skip", "ignore_once"})
"""Options of `%llguidance` that are taken. The engine knows another one, which allows bytes that
are no text."""

# What the engine's lexer tells apart, as far as that matters here: see parser/src/lark/lexer.rs of
# llguidance. It takes the longest match of all; these cannot begin alike, but for a comment and a
# regular expression, of which a comment has a second slash at once.
_LEXEME = re.compile(
    r"""
    (?P<comment> (?: \# | // ) [^\n]* )
    | (?P<string> " (?: \\. | [^"\\\n] )* "i? )
    | (?P<regex> / (?: \\. | [^/\\] )+ / [imslux]* )
    | (?P<newline> \r?\n )
    | (?P<token> < [^<>\s]+ > )
    | (?P<directive> % (?: json | lark | llguidance | regex ) )
    | (?P<colons> :: )
    | (?P<rule> [!]? [_?]? [a-z][_a-z0-9-]* )
    | (?P<other> \S )
    """,
    re.VERBOSE,
)
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")


class _Lexeme(NamedTuple):
    kind: str
    text: str


def check_lark(text: str) -> None:
    """Refuses what the engine would take and not do.

    Args:
        text: A Lark grammar; whether it is well formed otherwise, the engine says.

    Raises:
        ValueError: Says what is refused.
    """
    begins_item = True  # a rule, a terminal or a statement
    before_colon = False
    previous = ""
    for kind, lexeme in _lexemes(text):
        if kind == "token":
            _refuse(lexeme, "a token of the model has no text in an output")
        if lexeme == "%json":
            _refuse(lexeme, "ask for a schema by itself, which is then kept to exactly")
        if before_colon and previous in ("[", ",") and lexeme in _ATTRIBUTES:
            _refuse(f"the attribute {lexeme} of a rule", _ATTRIBUTES[lexeme])
        if begins_item and kind == "rule":
            before_colon = True
        elif lexeme == ":":
            before_colon = False
        begins_item = kind == "newline" or (lexeme == "{" and previous == "%lark")
        previous = lexeme


def _lexemes(text: str) -> Iterator[_Lexeme]:
    """The lexemes that matter, without comments and JSON."""
    start = 0
    while (match := _LEXEME.search(text, start)) is not None:
        start = match.end()
        kind = match.lastgroup
        assert kind is not None, "every alternative has a name"
        if kind != "comment":
            yield _Lexeme(kind, match.group())
        if match.group() in ("%llguidance", "%regex"):
            options, start = _json(text, start, match.group())
            if match.group() == "%llguidance":
                _check_options(options)


def _json(text: str, start: int, directive: str) -> tuple[object, int]:
    """What follows a directive, and where that ends."""
    blank = _BLANK.match(text, start)
    assert blank is not None, "it matches nothing too"
    try:
        return _DECODER.raw_decode(text, blank.end())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON follows {directive}: {error}") from error


def _check_options(options: object) -> None:
    if not isinstance(options, dict):
        return  # the engine says what it must be
    for name in options:
        if name not in _OPTIONS:
            _refuse(f"the option {name} of %llguidance", "it would not be honoured")


def _refuse(what: str, why: str) -> NoReturn:
    raise ValueError(f"{what} is not supported: {why}")
