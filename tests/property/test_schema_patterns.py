"""A text that a pattern of a schema allows matches it, whoever reads the pattern."""

import json
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.constraint.known_patterns import SAME_MEANING
from coordinator.constraint.messages import Standing
from tests.json_outputs import Output, assert_takes, output_maker, start, walk

HOSTILE = frozenset(bytes([byte]) for byte in b'"\\\x7f\x00ntrbfu01/-.:@ ') | frozenset(
    bytes([byte]) for byte in range(0x80, 0x100)
)
"""Quotes, backslashes and what follows them, and what lies beyond ASCII."""

TEXT = {"type": "string"}

PUBLISHED = [
    # names, versions, numbers and colours
    r"^[a-z0-9]+(?:-[a-z0-9]+)*$",
    r"^[a-zA-Z_$][\w$]*$",
    r"^(?:(?:@(?:[a-z0-9-*~][a-z0-9-*._~]*)?/[a-z0-9-._~])|[a-z0-9-~])[a-z0-9-._~]*$",
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$",
    r"^v?\d+(\.\d+){0,2}$",
    r"^#?([a-fA-F0-9]{6}|[a-fA-F0-9]{3})$",
    r"^\+?[1-9]\d{1,14}$",
    r"^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$",
    r"^[A-Z]{2}\d{2}[A-Z0-9]{1,30}$",
    r"^[+-]?\d*\.?\d*$",
    # addresses
    r"^[^\s@]+@[^\s@]+\.[^\s@]+$",
    r"^\S+@\S+\.\S+$",
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
    r"^https?://[^\s/$.?#].[^\s]*$",
    r"^(https?|ftp)://[^\s]+$",
    r"^data:[^;]+;base64,[A-Za-z0-9+/]+={0,2}$",
    # paths and what Windows bars from names
    r"^(/[^/ ]*)+/?$",
    r"^[^<>\"/\\|?*]+$",
    r'^[^<>:"/\\|?*\x00-\x1F]+$',
    r'^[a-zA-Z]:\\(?:[^\\/:*?"<>|\r\n]+\\)*[^\\/:*?"<>|\r\n]*$',
    r"^\.\.?/|^~",
    r"\.json$",
    # dates
    r"^\d{4}-\d{2}-\d{2}$",
    r"^((?:(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2}:\d{2}(?:\.\d+)?))(Z|[+-]\d{2}:\d{2})?)$",
    # text
    r'^[^"]{3}$',
    r'^[^"]*$',
    r'^[^"\\]*$',
    r"^[^'\"]*$",
    r'^[^"\n]*$',
    r'^"[^"]*"$',
    r"^\$\{[^}]+\}$",
    r"^[^ -~]$",
    r"^[\x00-\x20]$",
    r"^[\x20-\x7E]+$",
    r"^([\x00-\x0f]|[\x10-\x1f]|!)$",
    r'^([^"]|[\x00-\x1f])$',
    r"^[\s\S]{1,3}$",
    r"^.{1,3}$",
    r"^\S+$",
    r"^\S(.*\S)?$",
    r"^\s[\s-]$",
    r"^\D+$",
    r"^\W$",
    r"^[^\w]{2,5}$",
    r"^[^\w\s]$",
    r"^[^\d\s-]{1,3}$",
    r"^[^\D]$",
    r"(?i)^(yes|no)$",
    r"(?i)^[^k]+$",
    r"(?s)^.$",
    r"^(?P<stop>a+)b$",
    r"^[à-ü😀]$",
    r"^[[a]$",
    r"^[+--]$",
    r"^$",
    r"",
    # passwords, and what looks ahead from the start
    r"^(?=.*[A-Z])(?=.*\d).{8,}$",
    r"^(?=.{1,9}$)[a-z]+(?:\.[a-z]+)*$",
    r"^(?=a|b).",
    r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9])*\.?$",
    *SAME_MEANING,
    r"^a|b$",
    r"^(a|$)",
    r"[^\"]",
    r"^(?:^a$|b)$",
]

WINDOWS_NAME = r'^[^<>:"/\\|?*]+$'
OBJECTS: list[Any] = [
    {"patternProperties": {pattern: {"type": "null"}}, "additionalProperties": False}
    for pattern in (r'^[^"]$', r"^[^\"\\]{1,2}$", r"^\s$", r"^\w+$", r"^\W$", WINDOWS_NAME, "-")
] + [
    {
        "patternProperties": {r"^\d$": {"type": "integer"}, "^[0-9]$": {"minimum": 3}},
        "additionalProperties": False,
    },
]

ONE_READS = [
    # Python's `re` alone compiles these, the other validator alone those.
    *(r"^{$", r"^[^\<\>]$"),
    *(r"^[^\p{C}]{1,3}$", r"^\p{ASCII}+$"),
    *(r"^\p{L}{1,3}$", r"^[^\p{L}\p{M}]$", r"^(?<year>\d{4})$"),
]


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


def readers(pattern: str) -> list[Callable[[str], bool]]:
    """Those who compile a pattern."""
    found: list[Callable[[str], bool]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a [ in a class, which may mean another
        try:
            compiled = re.compile(pattern)
        except re.error:
            pass
        else:
            found.append(lambda text: compiled.search(text) is not None)
    try:
        validator = jsonschema_rs.validator_for({"pattern": pattern})
    except jsonschema_rs.ValidationError:
        pass
    else:
        found.append(validator.is_valid)
    return found


def texts(
    make_output: Callable[[], Output], schema: dict[str, Any], generator: random.Random, number: int
) -> list[Any]:
    """What some documents say that ended by themselves."""
    walks = (walk(make_output(), json.dumps(schema), generator, HOSTILE) for _ in range(number))
    return [json.loads(document) for document in walks if document is not None]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_what_a_published_pattern_allows_matches_it(
    make_output: Callable[[], Output], pattern: str
) -> None:
    schema = {**TEXT, "pattern": pattern, "maxLength": 60}
    both = readers(pattern)
    assert len(both) == 2
    ended = texts(make_output, schema, random.Random(7), 4)
    assert ended
    for text in ended:
        assert all(matches(text) for matches in both), text


@pytest.mark.parametrize("pattern", ONE_READS)
def test_a_pattern_that_not_all_compile_means_what_the_others_read(
    make_output: Callable[[], Output], pattern: str
) -> None:
    (matches,) = readers(pattern)
    ended = texts(make_output, {**TEXT, "pattern": pattern}, random.Random(7), 4)
    assert ended
    assert all(map(matches, ended))


@pytest.mark.parametrize("schema", OBJECTS, ids=json.dumps)
def test_keys_match_the_patterns_of_their_object(
    make_output: Callable[[], Output], schema: dict[str, Any]
) -> None:
    ended = texts(make_output, {"type": "object", **schema}, random.Random(7), 12)
    assert any(ended)
    validator = jsonschema_rs.validator_for(schema)
    for value in ended:
        assert validator.is_valid(value), value
        assert all(any(re.search(one, key) for one in schema["patternProperties"]) for key in value)


_RANGES = [r"\x00-\x1f", r"\x00-\x0f", r"\x10-\x1f", r"\x01-\x1f", " -~", "0-9", "a-z", "À-ÿ"]
_SINGLE = [r"\"", r"\\", "'", r"\x7f", r"\n", r"\t", r"\r", r"\x00", "é", "/"]
_SHORT = [r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "\u2028", "\u0085", "\ufeff", r"\x1c"]


@st.composite
def classes(draw: st.DrawFn) -> str:
    """A class, most often of what is hard to write in JSON."""
    members = draw(st.lists(st.sampled_from([*_RANGES, *_SINGLE, *_SHORT]), min_size=1, max_size=4))
    return f"[{draw(st.sampled_from(['', '^']))}{''.join(members)}]"


@given(
    parts=st.lists(classes(), min_size=1, max_size=3),
    form=st.sampled_from(["^{}$", "^({})$", "{}", "^{}", "^x{}*$", "^({})+$"]),
    joint=st.sampled_from(["", "|"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_what_generated_classes_allow_matches_them(
    make_output: Callable[[], Output], parts: list[str], form: str, joint: str, seed: int
) -> None:
    pattern = form.format(joint.join(parts))
    schema = {**TEXT, "pattern": pattern, "maxLength": 20}
    both = readers(pattern)
    for text in texts(make_output, schema, random.Random(seed), 3):
        assert all(matches(text) for matches in both), (pattern, text)


def test_a_quote_and_a_backslash_are_written_where_a_class_has_them(
    make_output: Callable[[], Output],
) -> None:
    ended = set()
    for pattern in (r'^["]$', r"^\\$", r"^[^a-z]$", r"^[^\x00]$", r"^\S$", "^.$"):
        ended.update(texts(make_output, {**TEXT, "pattern": pattern}, random.Random(1), 12))
    assert {'"', "\\"} <= ended


REFUSED = [
    *[(r"^a(?=b)b$", "(?="), (r"^(?!a)b$", "(?!"), (r"(?<=a)b", "(?<="), (r"(?<!a)b", "(?<!")],
    *[
        (r"^\bfoo$", r"\b"),
        (r"^(a)\1$", r"\1"),
        (r"\Aa$", r"\A"),
        (r"^a\Z", r"\Z"),
        (r"^a\z", r"\z"),
    ],
    *[(r"^\x{41}$", r"\x"), (r"^\u{41}$", r"\u"), (r"^\ud83d$", r"\ud83d"), (r"^\h$", r"\h")],
    *[(r"^\p{Greek}$", r"\p{Greek}"), (r"^\<a$", r"\<"), (r"^\012$", r"\0")],
    *[(r"^[[:alpha:]]$", "[:alpha:]"), (r"^[a-z&&[^b]]$", "&&"), (r"^[\w--\d]$", "--")],
    *[(r"^[a~~b]$", "~~"), (r"^[]a]$", r"\]"), (r"^[^]\s]$", r"\]"), (r"^[z-a]$", "z-a")],
    *[(r"(?m)^a$", "(?m)"), (r"^(?U)a$", "(?U)"), (r"^(?-u)\d$", "(?-u)"), (r"a(?i)b", "(?i)")],
    *[(r"^(?i:a)$", "(?i:"), (r"^(?>a)$", "(?>"), (r"^(?#a)$", "(?#"), (r"^(?P=a)$", "(?P=")],
    *[(r"^(?=a)b|c$", "(?="), (r"^(?=(?=a)b)c$", "(?="), (r"(?=a)b", "(?=")],
    *[(r"^\cA$", r"\c"), (r"^[\cA]$", r"\c"), (r"^[a-\d]$", "from a to a class")],
    *[(r"^a{,2}$", "{,2}"), (r"^a{3,2}$", "{3,2}"), (r"^a*+$", "*+"), (r"^a{2}{3}$", "{2}{")],
    *[
        (r"^*$", "^*"),
        (r"*a", "*"),
        (r"^a^b$", "anchor"),
        (r"^(a|$)b$", "anchor"),
        (r"(^a)+", "anchor"),
    ],
    *[(r"(a", "closed"), (r"a)", "closes no group"), (r"[a", "closed"), ("a\\", "\\")],
    *[(r"^[\x00]$", "not written"), (r"^[^\s\S]$", "not written"), ("(" * 51 + ")" * 51, "deep")],
]


@pytest.mark.parametrize(("pattern", "said"), REFUSED)
def test_what_has_no_common_meaning_is_refused_by_name(
    make_output: Callable[[], Output], pattern: str, said: str
) -> None:
    for schema, where in (
        ({**TEXT, "pattern": pattern}, "#/pattern"),
        ({"type": "object", "patternProperties": {pattern: True}}, "#/patternProperties/"),
    ):
        state = start(make_output(), json.dumps(schema))
        assert state.standing is Standing.BROKEN
        reason = state.error.partition(" is not supported: ")
        assert where in reason[0]
        assert said in reason[2]


def test_half_a_character_is_refused_as_it_is_written(make_output: Callable[[], Output]) -> None:
    assert (
        r"pattern ^\ud800$ at #/pattern" in start(make_output(), r'{"pattern": "^\ud800$"}').error
    )


def test_a_class_may_be_as_long_as_a_schema(make_output: Callable[[], Output]) -> None:
    members = "".join(map(chr, range(0x4E00, 0x6E00)))
    pattern = f"^[^{members}a-z\\d]$"
    ended = texts(make_output, {**TEXT, "pattern": pattern}, random.Random(7), 4)
    assert ended
    assert not set(ended) & {*members, *"abcdefghijklmnopqrstuvwxyz0123456789"}


def test_a_key_that_validators_read_differently_is_refused(
    make_output: Callable[[], Output],
) -> None:
    schema = {"properties": {"é": {}}, "patternProperties": {r"^\w$": {"type": "null"}}}
    assert "validators differ in 'é'" in start(make_output(), json.dumps(schema)).error


INTEGER = {"type": "integer"}
KEYS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {r"^\w+$": INTEGER},
        ['{"a":1}', '{"-":"x"}', "{}"],
        ['{"\u02940":"x"}', '{"\u0665":"x"}', '{"é":1}'],
    ),
    (
        {r"^\d+$": INTEGER},
        ['{"5":1}', '{"-":"x"}', '{"日本":"x"}'],
        ['{"\u0665":"x"}', '{"5":"x"}'],
    ),
    ({r"^\S+$": INTEGER}, ['{"a":1}', '{"é":1}', '{" ":"x"}'], ['{"\ufeff":"x"}', '{"é":"x"}']),
    ({r"^\W$": False}, ['{"a":"x"}'], ['{"-":1}', '{"\u0294":1}']),
    ({r"(?i)^k$": INTEGER}, ['{"k":1}', '{"K":1}', '{"kk":"x"}'], ['{"\u212a":"x"}', '{"K":"x"}']),
    ({"^a$": INTEGER}, ['{"a":1}', '{"ab":"x"}', '{"é":"x"}'], [r'{"a\n":"x"}', '{"a":"x"}']),
    ({"a$|^b": INTEGER}, ['{"a":1}', '{"x":"x"}'], [r'{"a\n":"x"}', r'{"xa\n":"x"}', '{"b":"x"}']),
    ({"^.{0,3}$": INTEGER}, ['{"a":1}', '{"abcd":"x"}'], [r'{"\n":"x"}', r'{"ab\n":"x"}']),
    ({"^x-": INTEGER}, ['{"x-a":1}', '{"a":"x"}', r'{"\n":"x"}'], ['{"x-":"x"}']),
    ({"": INTEGER}, ['{"a":1}', r'{"\n":1}'], ['{"a":"x"}']),
]


@pytest.mark.parametrize("others", [{}, {"additionalProperties": True}])
@pytest.mark.parametrize(("patterns", "taken", "refused"), KEYS, ids=str)
def test_a_key_that_only_some_find_a_pattern_in_is_not_written(
    make_output: Callable[[], Output],
    patterns: dict[str, Any],
    taken: list[str],
    refused: list[str],
    others: dict[str, Any],
) -> None:
    schema = json.dumps({"type": "object", "patternProperties": patterns, **others})
    assert_takes(make_output, schema, taken, refused)


@pytest.mark.parametrize("names", [{"properties": {"a\n": {}}}, {"required": ["a\n"]}])
def test_a_name_that_ends_with_a_line_feed_is_refused_beside_a_dollar_sign(
    make_output: Callable[[], Output], names: dict[str, Any]
) -> None:
    schema = {**names, "patternProperties": {"^a$": INTEGER}}
    assert r"validators differ in 'a\n'" in start(make_output(), json.dumps(schema)).error
    assert start(make_output(), json.dumps({**schema, "patternProperties": {"^b": {}}})).error == ""
