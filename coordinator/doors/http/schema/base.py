"""What all requests share: strict types, and one policy for what this server does not use.

What changes the text is honoured or refused by name. What is advisory, null, or unknown inside a
message is taken, and named in the answer (`coordinator.doors.http.ignored_fields`). Some fields
have a value that asks for nothing, such as `echo: false`; that value is taken, so that clients
which always send the field work, and every other one is refused. A description says which.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from coordinator.doors.http.schema.bounds import UnknownFields, bound_errors


class Unused(NamedTuple):
    """Marks a field of which this server makes nothing."""

    asks_for_nothing: bool
    """True when only a value is taken that every server would make nothing of."""
    is_up_to_model: bool = False
    """True when the model gets it, and may make nothing of it."""


ADVISORY, NEUTRAL = Unused(asks_for_nothing=False), Unused(asks_for_nothing=True)
UP_TO_MODEL = Unused(asks_for_nothing=False, is_up_to_model=True)


def _refuse_unknown(value: object, info: ValidationInfo) -> object:
    if value is None or value in ("", [], {}):
        return value
    if isinstance(info.context, UnknownFields):
        info.context.add()
    raise PydanticCustomError("extra_forbidden", "is not a field of this request")


Unknown = Annotated[
    Any, AfterValidator(_refuse_unknown), WithJsonSchema({"enum": [None, "", [], {}]})
]
"""A field that this server does not know: null or empty, or refused, for it may change the text."""


class RequestModel(BaseModel):
    """Base of everything that a client sends."""

    __pydantic_extra__: dict[str, Unknown] = Field(init=False)

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    def idle_fields(self) -> Collection[str]:
        """Fields that change nothing beside the others of this request."""
        return ()

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema, of which few errors come."""
        schema = handler(source)
        bound_errors(schema)
        return schema


class MessagePart(RequestModel):
    """Base of a message and of what stands inside one: a field that is not known is ignored."""

    __pydantic_extra__: dict[str, Any] = Field(init=False)


def idle_of_role(message: MessagePart, roles: Mapping[str, str]) -> list[str]:
    """Fields of a message that say something, but not in its role.

    Args:
        message: It has the field `role`.
        roles: The one role in which a field says something, by its name.
    """
    role = getattr(message, "role")  # noqa: B009 - each kind of message has roles of its own
    return [name for name, one in roles.items() if one != role and getattr(message, name)]


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class _NoneIfEmpty:
    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_none_if_empty, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        forms = handler(schema)["anyOf"]
        return {"anyOf": [*forms, {"const": "", "type": "string"}]}


NONE_IF_EMPTY = _NoneIfEmpty()
"""Takes an empty string for null, as the empty box of a form sends it; the description says so."""


class ModelRequest(RequestModel):
    """Base of what is asked of a model."""

    model: Annotated[str | None, NONE_IF_EMPTY] = Field(
        None, description="A name of a model. Null or empty: the only one that is served."
    )


class ResponseModel(BaseModel):
    """Base of everything that is answered."""

    model_config = ConfigDict(extra="forbid")


def _refuse(value: object) -> object:
    if value:
        raise ValueError("is not supported")
    return value


Unsupported = Annotated[
    Any,
    NEUTRAL,
    AfterValidator(_refuse),
    WithJsonSchema({"enum": [None, False, "", [], {}, 0]}),
    Field(description="Not supported: only null and what asks for nothing is taken."),
]
"""A field that this server does not have: null, false, empty, or refused by name."""

Advisory = Annotated[Any, ADVISORY, Field(description="Taken, and changes nothing.")]
"""A field that no text depends on."""


def _refuse_but(neutral: float) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value is None or (type(value) in (type(neutral), float) and value == neutral):
            return value
        raise ValueError(f"is supported only as {json.dumps(neutral)}, which asks for nothing")

    return check


OnlyOne = Annotated[
    Any,
    NEUTRAL,
    AfterValidator(_refuse_but(1)),
    WithJsonSchema({"enum": [None, 1]}),
    Field(description="Not supported: only null and 1, which asks for nothing, is taken."),
]
"""A field that this server does not have, and that is off at 1."""

OnlyTrue = Annotated[
    Any,
    NEUTRAL,
    AfterValidator(_refuse_but(True)),
    WithJsonSchema({"enum": [None, True]}),
    Field(description="Only null and true is taken, which is what always holds."),
]
"""A field that says what always holds here."""


def _whole(value: object) -> object:
    """Takes 16.0 for 16, as JSON does; many clients have one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
"""A whole number, also one that is written as 16.0."""


TEXT, ITEMS = Tag("<text>"), Tag("<items>")
"""Members of a union of a string and a list; no name of a field looks like these."""


def by_json_type(kinds: Mapping[type, Tag], message: str) -> Discriminator:
    """Chooses the member of a union by the type of a value, so that errors are of that one.

    Args:
        kinds: The tag of the member for each type.
        message: What is wrong with a value of another type.
    """

    def tag_of(value: object) -> str | None:
        return next((tag.tag for kind, tag in kinds.items() if isinstance(value, kind)), None)

    return Discriminator(tag_of, custom_error_type="wrong_type", custom_error_message=message)


MAX_TYPE_CHARS = 64
"""Most characters of a type in a request that an error shows."""


def type_in(value: object) -> object:
    """The field `type` of an object, which says what it was meant to be; None without one."""
    return value.get("type") if isinstance(value, dict) else None


def by_type(types: Sequence[str], hint: str = "") -> Discriminator:
    """Chooses the member of a union of objects by their field `type`.

    Args:
        types: The types; the member of each has the tag `<TYPE>`, which is no name of a field.
        hint: What else an error says.
    """

    def tag_of(value: object) -> str | None:
        kind = type_in(value)
        return f"<{kind}>" if kind in types else None

    message = f"must be an object whose type is one of {', '.join(types)}{hint}"
    return Discriminator(tag_of, custom_error_type="wrong_type", custom_error_message=message)


def refuse_types_but(types: Sequence[str], words: Callable[[str], str]) -> BeforeValidator:
    """Refuses by name an object of a type that other servers have.

    Args:
        types: The types that are taken.
        words: What is said of another type, as it is shown.
    """

    def check(value: object) -> object:
        kind = type_in(value)
        if isinstance(kind, str) and kind not in types:
            raise ValueError(words(repr(kind[:MAX_TYPE_CHARS])))
        return value

    return BeforeValidator(check)
