"""From the bytes of a body to a validated model, or to one line that says what is wrong."""

import re
from typing import TypeVar

from pydantic import ValidationError

from coordinator.doors.http.schema.base import RequestModel
from coordinator.doors.http.schema.bounds import UnknownFields
from stagecoach.contract.errors import InvalidArgumentError

MAX_SHOWN_CHARS = 64
"""Most characters of what a client sent that an error shows."""
_NO_FIELD = re.compile(r"<.*>|\[key\]")
"""The tag of a member of a union, and what pydantic calls the name of an entry."""

Model = TypeVar("Model", bound=RequestModel)


def validate(body: bytes, model: type[Model]) -> Model:
    """Reads a body.

    Raises:
        InvalidArgumentError: It is not JSON, or not what the model asks for; names the field.
    """
    try:
        return model.model_validate_json(body, context=UnknownFields())
    except ValidationError as error:
        raise _invalid(error, model) from None  # its text would hold the whole prompt


def _invalid(error: ValidationError, model: type[RequestModel]) -> InvalidArgumentError:
    """Says in one line what is wrong, and with which field, without repeating a prompt."""
    details = error.errors(include_url=False, include_context=False)[0]
    message = details["msg"].removeprefix("Value error, ")
    field = _path(details["loc"])
    if not field:  # of the request as a whole: our own messages begin with the field's name
        first = message.partition(" ")[0]
        return InvalidArgumentError(message, field=first if first in model.model_fields else "")
    if details["type"] in ("extra_forbidden", "value_error"):
        return InvalidArgumentError(f"{field} {message}", field=field)
    value = details["input"]
    if isinstance(value, bool | int | float) or (
        details["type"] == "literal_error" and isinstance(value, str)
    ):
        message = f"{message}; it is {str(value)[:MAX_SHOWN_CHARS]!r}"
    return InvalidArgumentError(f"{field}: {message}", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """The way to a value in the request, such as `messages[0].role`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part[:MAX_SHOWN_CHARS]
        elif not _NO_FIELD.fullmatch(part):
            path += f".{part[:MAX_SHOWN_CHARS]}"
    return path
