"""Reads the body of a request: bounded, and once, into a validated model."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from coordinator.http.errors import BodyTooLargeError, UnsupportedMediaTypeError
from coordinator.http.schema.base import RequestModel
from protos.errors import InvalidArgumentError, RequestAbortedError

_BYTES_PER_TOKEN = 64
"""Of text, far above the mean of any tokenizer."""
_HEADROOM_BYTES = 2**20
"""For chats with long histories in few tokens, schemas, biases."""
_MAX_SHOWN_CHARS = 64
_FIELD_NAME = re.compile(r"[a-z_]+")
_NO_FIELDS = frozenset({"str", "int", "float", "bool", "dict"})
"""Names that pydantic gives to the members of a union of types."""

Model = TypeVar("Model", bound=RequestModel)


def max_body_bytes(max_model_len: int) -> int:
    """Longest body that is read: what the longest request can hold, and headroom.

    Args:
        max_model_len: Most tokens of one request, prompt and output together.
    """
    return max_model_len * _BYTES_PER_TOKEN + _HEADROOM_BYTES


async def read_body(request: Request, model: type[Model], *, max_bytes: int) -> Model:
    """Reads a request.

    Args:
        request: Whose body was not touched yet.
        model: What it must be.
        max_bytes: Longest body that is read.

    Raises:
        InvalidArgumentError: It is not JSON, or not what the model asks for; names the field.
        BodyTooLargeError: It is longer than `max_bytes`; the rest was not read.
        UnsupportedMediaTypeError: It does not call itself JSON, or is compressed.
        RequestAbortedError: The client left.
    """
    _check_headers(request, max_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(len(body), max_bytes)
    except ClientDisconnect:
        raise RequestAbortedError("the client left before its request was complete") from None
    try:
        return model.model_validate_json(bytes(body))
    except ValidationError as error:
        raise _invalid(error, model) from None  # its text would hold the whole prompt


def _check_headers(request: Request, max_bytes: int) -> None:
    # A page of a foreign site may post anything else to this address without being asked first.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"content-type is {media_type[:_MAX_SHOWN_CHARS]!r}, must be application/json",
            field="content-type",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"content-encoding is {encoding[:_MAX_SHOWN_CHARS]!r}, must be identity",
            field="content-encoding",
        )
    length = int(request.headers.get("content-length", 0))  # the parser lets only digits pass
    if length > max_bytes:
        raise _too_large(length, max_bytes)


def _too_large(num_bytes: int, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has at least {num_bytes} bytes, at most {max_bytes} are read",
        num_bytes=num_bytes,
        limit=max_bytes,
    )


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
        message = f"{message}; it is {str(value)[:_MAX_SHOWN_CHARS]!r}"
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
            path = part[:_MAX_SHOWN_CHARS]
        elif _is_field(part):
            path += f".{part[:_MAX_SHOWN_CHARS]}"
    return path


def _is_field(part: str) -> bool:
    return _FIELD_NAME.fullmatch(part) is not None and part not in _NO_FIELDS
