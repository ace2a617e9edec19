"""From the bytes of a body to a validated model, or to one line that says what is wrong."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from coordinator.http.schema.base import RequestModel
from protos.errors import InvalidArgumentError

MAX_SHOWN_CHARS = 64
"""Of what a client sent, in an error."""
_FIELD_NAME = re.compile(r"[a-z_]+")
_NO_FIELDS = frozenset({"str", "int", "float", "bool", "dict"})
"""Names that pydantic gives to the members of a union of types."""

Model = TypeVar("Model", bound=RequestModel)


def validate(body: bytes, model: type[Model]) -> Model:
    """Reads a body.

    Raises:
        InvalidArgumentError: It is not JSON, or not what the model asks for; names the field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error, model) from None  # its text would hold the whole prompt


def _invalid(error: ValidationError, model: type[RequestModel]) -> InvalidArgumentError:
    """Says in one line what is wrong, and with which field, without repeating a prompt."""
    details = _most_telling(error.errors(include_url=False, include_context=False))
    message = details["msg"].removeprefix("Value error, ")
    field = _path(details["loc"])
    if not field:  # of the request as a whole: our own messages begin with the field's name
        first = message.partition(" ")[0]
        return InvalidArgumentError(message, field=first if first in model.model_fields else "")
    if details["type"] == "extra_forbidden":
        return InvalidArgumentError(f"{field} is not a field of this request", field=field)
    if details["type"] == "value_error":
        return InvalidArgumentError(f"{field} {message}", field=field)
    value = details["input"]
    if isinstance(value, bool | int | float) or (
        details["type"] == "literal_error" and isinstance(value, str)
    ):
        message = f"{message}; it is {str(value)[:MAX_SHOWN_CHARS]!r}"
    return InvalidArgumentError(f"{field}: {message}", field=field)


def _most_telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The error to show: of a union, the one of the member that the value was meant to be."""

    def head(error: ErrorDetails) -> str:
        return str(error["loc"][:1])

    def member(error: ErrorDetails) -> str:
        tags = [part for part in error["loc"] if isinstance(part, str) and not _is_field(part)]
        return "/".join(tags)

    first_field = next(list(group) for _, group in groupby(errors, key=head))
    members = [list(group) for _, group in groupby(first_field, key=member)]
    best = max(members, key=lambda group: (max(len(one["loc"]) for one in group), -len(group)))
    return best[0]


def _path(location: tuple[int | str, ...]) -> str:
    """The way to a value in the request, such as `messages[0].role`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part[:MAX_SHOWN_CHARS]
        elif _is_field(part):
            path += f".{part[:MAX_SHOWN_CHARS]}"
    return path


def _is_field(part: str) -> bool:
    return _FIELD_NAME.fullmatch(part) is not None and part not in _NO_FIELDS
