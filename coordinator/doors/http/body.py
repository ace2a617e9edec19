"""Reads the body of a request: bounded, and once, into a validated model."""

from contextlib import AsyncExitStack
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from coordinator.doors.http.body_workers import MAX_INLINE_BYTES, BodyWorkers
from coordinator.doors.http.errors import BodyTooLargeError, UnsupportedMediaTypeError
from coordinator.doors.http.ignored_fields import IgnoredFields
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.validation import MAX_SHOWN_CHARS
from stagecoach.contract.errors import RequestAbortedError

Model = TypeVar("Model", bound=ModelRequest)


async def read_body(
    request: Request, model: type[Model], bodies: BodyWorkers, *, max_bytes: int
) -> tuple[Model, IgnoredFields]:
    """Reads a request; also tells which of its fields change nothing.

    Args:
        request: Whose body was not touched yet.
        model: What it must be.
        bodies: Validates it.
        max_bytes: Longest body that is read.

    Raises:
        InvalidArgumentError: It is not JSON, or not what the model asks for; names the field.
        BodyTooLargeError: It is longer than `max_bytes`; the rest was not read.
        UnsupportedMediaTypeError: It does not call itself JSON, or is compressed.
        RequestAbortedError: The client left.
        StagecoachError: As `BodyWorkers.validate`.
    """
    _check_headers(request, max_bytes)
    body = bytearray()
    async with AsyncExitStack() as held:
        is_large = False
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(len(body), max_bytes)
                if len(body) > MAX_INLINE_BYTES and not is_large:
                    is_large = True
                    length = int(request.headers.get("content-length", max_bytes))
                    await held.enter_async_context(bodies.held.hold(length))
        except ClientDisconnect:
            raise RequestAbortedError("the client left before its request was complete") from None
        return await bodies.validate(bytes(body), model)


def _check_headers(request: Request, max_bytes: int) -> None:
    # A page of a foreign site may post anything else to this address without being asked first.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"content-type is {media_type[:MAX_SHOWN_CHARS]!r}, must be application/json",
            field="content-type",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"content-encoding is {encoding[:MAX_SHOWN_CHARS]!r}, must be identity",
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
