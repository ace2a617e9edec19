"""Every document of a schema that ends by itself validates, however its tokens are chosen."""

import json
import random
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.constraint.messages import Standing
from tests.json_outputs import Output, output_maker, start, walk


@pytest.fixture(scope="module")
def make_output() -> Callable[[], Output]:
    return output_maker()


SMALL = {"type": "integer", "minimum": 0, "maximum": 3}
NUMBER = {"type": "number"}
SCHEMAS: list[Any] = [
    {**NUMBER, "exclusiveMinimum": 1, "exclusiveMaximum": 1.5},
    {**NUMBER, "exclusiveMinimum": -1.5, "exclusiveMaximum": -1},
    {**NUMBER, "exclusiveMinimum": 0, "maximum": 0.25},
    {"allOf": [{**NUMBER, "exclusiveMinimum": 2}, {"exclusiveMaximum": 2.5}]},
    {**NUMBER, "exclusiveMinimum": 2, "anyOf": [{"maximum": 2.5}, {"minimum": 7.5}]},
    {**NUMBER, "exclusiveMaximum": 1},
    {**NUMBER, "exclusiveMinimum": 0.5, "exclusiveMaximum": 0.75},
    {**NUMBER, "multipleOf": 1.5},
    {**NUMBER, "multipleOf": 0.1},
    {**NUMBER, "maximum": 3.141592653589793},
    {**NUMBER, "minimum": -(2**63), "maximum": 2**63},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**64},
    {"type": "integer", "multipleOf": 7},
    {"const": 2**53},
    {"type": "integer", "enum": [9223370000000000000, -9223370000000000000]},
    {"type": "string", "minLength": 1.0, "maxLength": 2**32},
    {"type": "array", "items": SMALL, "minItems": 1.0, "maxItems": 1e20},
    {"enum": [0.1, -2.5e-7, {"deep": [1e18, None]}]},
    NUMBER,
    {"type": "array", "items": NUMBER},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "email", "maxLength": 12},
    {"type": "string", "format": "time", "pattern": "^0"},
    {"type": "string", "pattern": r"^\s[\s-]$"},
    {"type": "string", "pattern": "^[0-9.]{40}$"},
    {"type": "array", "items": SMALL, "uniqueItems": False, "minItems": 1, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "boolean"}, SMALL], "items": False},
    {"type": "object", "properties": {"a": SMALL}, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "patternProperties": {"^x": SMALL}, "additionalProperties": False},
    {
        "type": "object",
        "properties": {"default": {"const": 1.5}, "format": {"enum": ["time"]}},
        "required": ["default", "format"],
        "additionalProperties": False,
    },
    {"allOf": [{"enum": [1, 2, 3]}, {"minimum": 2}]},
    {"anyOf": [SMALL, {"type": "string", "maxLength": 2}, {"type": "null"}]},
    {"default": 2**90, "examples": [1e300], "type": "null"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_documents_of_random_tokens_validate(
    make_output: Callable[[], Output], schema: dict[str, Any]
) -> None:
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    generator = random.Random(5)
    documents = [walk(make_output(), json.dumps(schema), generator) for _ in range(12)]
    ended = [document for document in documents if document is not None]
    assert ended
    for document in ended:
        assert validator.is_valid(json.loads(document)), document


WRONG: list[tuple[str, str]] = [
    ('{"const": 9007199254740993}', "const 9007199254740993 at #/const"),
    ('{"const": 1e400}', "const 1e400 at #/const"),
    ('{"const": 123456789.12345679}', "const 123456789.12345679"),
    ('{"enum": ["z", [1e-400]]}', "enum 1e-400 at #/enum"),
    ('{"properties": {"a/b": {"const": 1e300}}}', "const 1e300 at #/properties/a~1b/const"),
    ('{"items": {"type": "integer", "minimum": 9223372036854775807}}', "at #/items/minimum"),
    ('{"type": "number", "maximum": -1e400}', "maximum -1E+400 at #/maximum"),
    ('{"type": "integer", "minimum": 1e20, "maximum": 1e20}', "minimum 1E+20 at #/minimum"),
    ('{"type": "integer", "exclusiveMaximum": -1e19}', "exclusiveMaximum -1E+19 at #/excl"),
    ('{"type": "number", "maximum": 1e9999999999999999999}', "too large"),
    ('{"multipleOf": 0.1000000000000000055511151231257827}', "multipleOf 0.10000"),
    ('{"items": {"multipleOf": 1e-22}}', "multipleOf 1e-22 at #/items/multipleOf"),
    ('{"multipleOf": 33.33}', "multipleOf 33.33 at #/multipleOf"),
    ('{"multipleOf": 4294967296}', "multipleOf 4294967296 at #/multipleOf"),
    ('{"type": "integer", "const": 1e22}', "const 1e22 at #/const"),
    ('{"items": {"type": "integer"}, "const": [1e19]}', "const 1e19 at #/const"),
    ('{"type": "integer", "enum": [-9300000000000000000]}', "enum -9300000000000000000 at #/enum"),
    ('{"type": "integer", "const": 9223372036854775808}', "const 9223372036854775808 at #/const"),
    ('{"items": {"minLength": 4294967296}}', "minLength 4294967296 at #/items/minLength"),
    ('{"const": NaN}', "NaN is no JSON"),
    ('{"minimum": -Infinity}', "-Infinity is no JSON"),
    ('{"$ref": "#/default", "default": {"const": 9007199254740993}}', "$ref #/default at #/$ref"),
    ('{"$ref": "#/$defs/nowhere"}', "/$defs/nowhere"),
    ('{"$ref": "http://elsewhere/schema"}', "http://elsewhere/schema"),
    ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
]


@pytest.mark.parametrize(("schema", "said"), WRONG)
def test_what_the_engine_would_get_wrong_is_refused_by_name(
    make_output: Callable[[], Output], schema: str, said: str
) -> None:
    state = start(make_output(), schema)
    assert state.standing is Standing.BROKEN
    assert said in state.error


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, str]:
    """Some bounds, as a client may write them."""
    values = st.one_of(
        st.integers(-20, 20).map(str),
        st.decimals(-20, 20, places=2).map(str),
        st.decimals(-1, 1, places=6).map(str),
        st.sampled_from(["0.1", "1e-7", "1.0", "100", "9007199254740993", "1e20", "-1e-300"]),
    )
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return {name: draw(values) for name in names if draw(st.booleans())}


def keeps_to(number: Decimal, keywords: dict[str, str]) -> bool:
    limits = {name: Decimal(text) for name, text in keywords.items()}
    return (
        number >= limits.get("minimum", number)
        and number <= limits.get("maximum", number)
        and ("exclusiveMinimum" not in limits or number > limits["exclusiveMinimum"])
        and ("exclusiveMaximum" not in limits or number < limits["exclusiveMaximum"])
    )


@given(keywords=bounds(), kind=st.sampled_from(["number", "integer"]), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=100)
def test_numbers_keep_to_their_bounds_exactly_and_as_doubles(
    make_output: Callable[[], Output], keywords: dict[str, str], kind: str, seed: int
) -> None:
    written = "".join(f', "{name}": {text}' for name, text in keywords.items())
    schema = f'{{"type": "{kind}"{written}}}'
    generator = random.Random(seed)
    for _ in range(3):
        document = walk(make_output(), schema, generator)
        if document is not None:
            with localcontext(prec=500):
                assert keeps_to(Decimal(document), keywords), (schema, document)
            as_double = {name: str(Decimal(float(text))) for name, text in keywords.items()}
            assert keeps_to(Decimal(float(document)), as_double), (schema, document)
