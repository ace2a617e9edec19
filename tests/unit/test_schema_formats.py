"""What formats allow where the grammar engine's own allow too much."""

import re
from datetime import MAXYEAR, MINYEAR, date

import jsonschema_rs
import pytest
from hypothesis import given
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


@pytest.mark.parametrize("form", ["date", "date-time", "time", "email", "hostname"])
@given(data=st.data())
def test_what_a_format_allows_validates(form: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(pattern_of(form), fullmatch=True))
    validator = jsonschema_rs.validator_for({"format": form}, validate_formats=True)
    assert validator.is_valid(text)


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
