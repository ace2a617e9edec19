"""Python functions as tools: their schemas, how arguments are read, and what is refused."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import pytest

from stagecoach.client import InvalidArgumentError, ToolError
from stagecoach.client.docstrings import docstring_of
from stagecoach.client.function_tool import FunctionTool, result_text


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Place:
    """Where."""

    lat: float
    lon: float
    tags: list[str] = field(default_factory=list)


class Trip(TypedDict):
    """From where to where."""

    start: Place
    end: NotRequired[Place]


UserId = NewType("UserId", int)


def everything(
    text: str,
    number: int,
    share: float,
    flag: bool,
    kind: Literal["a", "b", 3],
    colour: Colour,
    names: list[str],
    more: Sequence[int],
    by_name: dict[str, float],
    place: Place,
    trip: Trip,
    user: UserId,
    either: int | str,
    anything: Any,
    note: Annotated[str, "A note."],
    maybe: str | None = None,
    old: Optional[int] = 5,  # noqa: UP045 - annotations of older programs
) -> None:
    """Does everything."""


def schema_of(function: Callable[..., object]) -> dict[str, Any]:
    return FunctionTool.of(function, "tools[0]").form.schema


PLACE = {
    "type": "object",
    "properties": {
        "lat": {"type": "number"},
        "lon": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["lat", "lon"],
    "additionalProperties": False,
}


def test_annotations_become_a_schema() -> None:
    assert schema_of(everything) == {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "integer"},
            "share": {"type": "number"},
            "flag": {"type": "boolean"},
            "kind": {"enum": ["a", "b", 3]},
            "colour": {"enum": ["red", "blue"]},
            "names": {"type": "array", "items": {"type": "string"}},
            "more": {"type": "array", "items": {"type": "integer"}},
            "by_name": {"type": "object", "additionalProperties": {"type": "number"}},
            "place": PLACE,
            "trip": {
                "type": "object",
                "properties": {"start": PLACE, "end": PLACE},
                "required": ["start"],
                "additionalProperties": False,
            },
            "user": {"type": "integer"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "anything": {},
            "note": {"type": "string", "description": "A note."},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "old": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 5},
        },
        "required": [
            *("text", "number", "share", "flag", "kind", "colour", "names", "more", "by_name"),
            *("place", "trip", "user", "either", "anything", "note"),
        ],
        "additionalProperties": False,
    }


def google(city: str, days: int = 1) -> None:
    """Tells the weather.

    Of any city.

    Args:
        city (str): Which city,
            in English.
        days: How many: 1 to 9.

    Returns:
        The weather.
    """


def sphinx(city: str, days: int = 1) -> None:
    """Tells the weather.

    Of any city.

    :param city: Which city,
        in English.
    :param int days: How many: 1 to 9.
    :returns: The weather.
    """


@pytest.mark.parametrize("function", [google, sphinx])
def test_docstrings_describe_the_function_and_its_parameters(
    function: Callable[..., object],
) -> None:
    tool = FunctionTool.of(function, "tools[0]")
    assert tool.description == "Tells the weather.\n\nOf any city."
    assert tool.form.schema["properties"] == {
        "city": {"type": "string", "description": "Which city, in English."},
        "days": {"type": "integer", "description": "How many: 1 to 9.", "default": 1},
    }


def test_a_function_without_a_docstring_has_no_description() -> None:
    assert docstring_of(lambda: None) == ("", {})


def test_arguments_are_read_as_the_annotations_ask() -> None:
    def f(
        place: Place,
        trip: Trip,
        colour: Colour,
        share: float,
        number: int,
        maybe: Place | None = None,
    ) -> None:
        """Takes much."""

    found = FunctionTool.of(f, "tools[0]").arguments(
        '{"place": {"lat": 1, "lon": 2.5}, "trip": {"start": {"lat": 0, "lon": 0, "tags": ["x"]}},'
        ' "colour": "blue", "share": 1, "number": 2.0, "maybe": null}'
    )
    assert found == {
        "place": Place(1.0, 2.5),
        "trip": {"start": Place(0.0, 0.0, ["x"])},
        "colour": Colour.BLUE,
        "share": 1.0,
        "number": 2,
        "maybe": None,
    }
    assert type(found["share"]) is float
    assert type(found["number"]) is int


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{", "Expecting"),
        ("[]", "arguments must be an object"),
        ("{}", "arguments has no city"),
        ('{"city": 5}', "arguments.city must be of the type string"),
        ('{"city": "x", "days": true}', "arguments.days must be of the type integer"),
        ('{"city": "x", "days": 1.5}', "arguments.days must be of the type integer"),
        ('{"city": "x", "when": 1}', "arguments has 'when', which is none of city, days"),
        ("[" * 100_000, "arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_for_the_model_to_mend(arguments: str, told: str) -> None:
    with pytest.raises(ToolError, match="the arguments of google are wrong") as caught:
        FunctionTool.of(google, "tools[0]").arguments(arguments)
    assert told in str(caught.value)


def untyped(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Takes something."""


def of_any_number(*cities: str) -> None:
    """Takes many."""


def named_freely(**cities: str) -> None:
    """Takes many."""


def positional(city: str, /) -> None:
    """Takes one."""


def with_complex(number: complex) -> None:
    """Takes one."""


def with_keys(names: dict[int, str]) -> None:
    """Takes some."""


def with_callback(call: Callable[[], None]) -> None:
    """Takes one."""


def unresolved(city: "NoSuchClass") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Takes one."""


@dataclass
class Node:
    """Stands in itself."""

    inner: "Node | None" = None


def nested(node: Node) -> None:
    """Takes a tree."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (untyped, "untyped(): city has no annotation"),
        (of_any_number, "of_any_number(): cities is of any number"),
        (named_freely, "named_freely(): cities is of any number"),
        (positional, "positional(): city is positional only"),
        (with_complex, "with_complex(): number is annotated complex"),
        (with_keys, "with_keys(): names is annotated dict[int, str]"),
        (with_callback, "with_callback(): call is annotated"),
        (unresolved, "unresolved() has an annotation that cannot be resolved"),
        (nested, "nested(): node: inner is annotated Node: it stands in itself"),
    ],
)
def test_what_no_json_stands_for_names_the_function_and_the_parameter(
    function: Callable[..., object], words: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FunctionTool.of(function, "tools[3]")
    assert caught.value.field == "tools[3]"
    assert caught.value.message.startswith(f"tools[3]: {words}")


def test_something_without_a_name_is_no_tool() -> None:
    class Nameless:
        def __call__(self) -> None:
            """Does nothing."""

    with pytest.raises(InvalidArgumentError, match="is a Nameless without a name"):
        FunctionTool.of(Nameless(), "tools[0]")


def test_a_method_is_called_without_its_object() -> None:
    class House:
        def open(self, door: str) -> str:
            """Opens a door."""
            return door

    tool = FunctionTool.of(House().open, "tools[0]")
    assert tool.form.schema["required"] == ["door"]
    assert tool.function(**tool.arguments('{"door": "x"}')) == "x"


def test_results_are_text_or_json() -> None:
    assert result_text("f", "as it is") == "as it is"
    assert result_text("f", None) == "null"
    assert result_text("f", {"é": [Colour.RED, Place(1, 2)]}) == (
        '{"é": ["red", {"lat": 1, "lon": 2, "tags": []}]}'
    )
    with pytest.raises(InvalidArgumentError, match=r"tools: f\(\) returned a set"):
        result_text("f", {1, 2})


def test_bare_collections_take_anything() -> None:
    def f(a: list, b: dict, c: Iterable, d: Mapping) -> None:  # type: ignore[type-arg]
        """Takes some."""

    anything: dict[str, object] = {"type": "array", "items": {}}
    mapping: dict[str, object] = {"type": "object", "additionalProperties": {}}
    assert schema_of(f)["properties"] == {
        "a": anything,
        "b": mapping,
        "c": anything,
        "d": mapping,
    }
