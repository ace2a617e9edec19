"""What formats allow where the grammar engine's own allow too much."""

import base64
import re
from datetime import MAXYEAR, MINYEAR, date
from uuid import uuid4

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.constraint.schema_formats import rewrite_format


def pattern_of(form: str) -> str:
    schema = {"format": form}
    assert rewrite_format(schema)
    assert list(schema) == ["pattern"]
    return schema["pattern"]


def is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def test_the_dates_are_those_of_the_calendar() -> None:
    pattern = re.compile(pattern_of("date"))
    ends = [
        (2, 28),
        (2, 29),
        (2, 30),
        (4, 30),
        (4, 31),
        (12, 31),
        (12, 32),
        (13, 1),
        (0, 1),
        (1, 0),
    ]
    for year in range(MINYEAR - 1, MAXYEAR + 1):
        for month, day in ends:
            text = f"{year:04}-{month:02}-{day:02}"
            assert bool(pattern.search(text)) == is_date(year, month, day), text


@pytest.mark.parametrize("text", ["0000-01-01T00:00:00Z", "1900-02-29T00:00:00Z"])
def test_a_date_with_a_time_is_one_of_the_calendar_too(text: str) -> None:
    pattern = re.compile(pattern_of("date-time"))
    assert not pattern.search(text)
    assert pattern.search(text.replace("0000", "0004").replace("1900", "2000"))


@pytest.mark.parametrize("text", ["a", "a.b", "x-1.example.org", "1", "a" * 21 + ".b"])
def test_everyday_names_of_hosts_are_allowed(text: str) -> None:
    assert re.search(pattern_of("hostname"), text)


@pytest.mark.parametrize("text", ["xn--X", "ab--c", "-a", "a-", "a.", ".".join(["a" * 40] * 7)])
def test_names_that_no_host_has_are_not(text: str) -> None:
    assert not re.search(pattern_of("hostname"), text)
    assert not re.search(pattern_of("email"), f"a@b.{text}")


ASSERTED = [
    *("date", "date-time", "time", "email", "hostname", "idn-email", "idn-hostname"),
    *("uri-reference", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
    "regex",
]


@pytest.mark.parametrize("form", ASSERTED)
@settings(max_examples=40)
@given(data=st.data())
def test_what_a_format_allows_validates(form: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(pattern_of(form), fullmatch=True))
    validator = jsonschema_rs.validator_for({"format": form}, validate_formats=True)
    assert validator.is_valid(text), text


@given(text=st.from_regex(pattern_of("regex"), fullmatch=True))
def test_what_the_format_of_expressions_allows_is_one_to_python_too(text: str) -> None:
    re.compile(text)


@given(text=st.from_regex(pattern_of("base64"), fullmatch=True))
def test_what_the_format_of_bytes_allows_can_be_decoded(text: str) -> None:
    base64.b64decode(text, validate=True)


@pytest.mark.parametrize("version", range(1, 9))
def test_an_identifier_has_the_version_of_its_format(version: int) -> None:
    pattern = re.compile(pattern_of(f"uuid{version}"))
    text = f"{uuid4()}"
    for other in range(10):
        assert bool(pattern.search(f"{text[:14]}{other}{text[15:]}")) == (other == version)


PARTS = ["/a/b", "../a", "a?b=c&d", "#part", "https://example.org:80/a//b", ""]


@pytest.mark.parametrize("text", PARTS)
def test_everyday_references_are_allowed(text: str) -> None:
    assert re.search(pattern_of("uri-reference"), text)


@pytest.mark.parametrize("text", ["^a$", r"^\d+\.\d*$", "[A-Z0-9_]+|b?", r"(\w+|x)-(a|b)*", ""])
def test_everyday_expressions_are_allowed(text: str) -> None:
    assert re.search(pattern_of("regex"), text)


@pytest.mark.parametrize(("form", "own"), [("iri", "uri"), ("url", "uri"), ("ip-address", "ipv4")])
def test_a_format_that_has_all_of_another_becomes_that(form: str, own: str) -> None:
    schema = {"type": "string", "format": form}
    assert rewrite_format(schema)
    assert schema == {"type": "string", "format": own}


NOTES = [
    *("password", "binary", "path", "file-path", "ipvanyaddress", "multi-host-uri", "json-string"),
    *("cuid", "ulid", "jwt", "emoji", "starts_with", "int32", "int64", "double", "anything", ""),
]


@pytest.mark.parametrize("form", NOTES)
def test_a_format_that_no_validator_looks_at_is_left_out(form: str) -> None:
    schema = {"pattern": "^a", "format": form}
    assert rewrite_format(schema)
    assert schema == {"pattern": "^a"}


def test_the_longest_name_of_a_host_validates() -> None:
    label = "-".join("a" * 21)
    name = ".".join([label] * 6)
    assert re.search(pattern_of("hostname"), name)
    assert jsonschema_rs.validator_for({"format": "hostname"}, validate_formats=True).is_valid(name)


def test_a_format_and_a_pattern_both_count() -> None:
    schema = {"format": "date", "pattern": "^2", "allOf": [{"maxLength": 10}]}
    assert rewrite_format(schema)
    assert schema == {
        "pattern": "^2",
        "allOf": [{"maxLength": 10}, {"pattern": pattern_of("date")}],
    }


@pytest.mark.parametrize("schema", [{"format": "uuid"}, {"format": 3}, {"pattern": "^a"}, {}])
def test_other_schemas_stay_as_they_are(schema: dict[str, object]) -> None:
    before = dict(schema)
    assert not rewrite_format(schema)
    assert schema == before
