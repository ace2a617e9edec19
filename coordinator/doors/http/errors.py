"""Typed errors <-> OpenAI's error objects and HTTP statuses; the sole owner of that mapping."""

from typing import Literal, NamedTuple

from fastapi.responses import JSONResponse
from pydantic import Field

from coordinator.doors.http.field_names import NO_NAMES, FieldNames, renamed
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.prompt_items import blamed_field
from stagecoach.contract import errors
from stagecoach.contract.error_words import in_words_of

RETRY_AFTER_S = 1
"""What a refused caller is told to wait: about the time of one short request."""

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
    "timeout_error",
]


class ErrorBody(ResponseModel):
    """What went wrong."""

    message: str = Field(description="One line for people, with the field and the numbers.")
    type: ErrorType
    param: str | None = Field(description="The offending field of the request.")
    code: str | None = Field(description="Stable name of the error, for programs.")


class ErrorResponse(ResponseModel):
    """An error, in the shape that OpenAI's clients read."""

    error: ErrorBody


class BodyTooLargeError(errors.InvalidArgumentError):
    """The body of a request is longer than any request that could be served."""


class UnsupportedMediaTypeError(errors.InvalidArgumentError):
    """The body of a request is not, or does not call itself, plain JSON."""


class NotFoundError(errors.InvalidArgumentError):
    """There is nothing at this path."""


class PreviousResponseNotFoundError(errors.InvalidArgumentError):
    """A request goes on with a response that is not kept."""


class MethodNotAllowedError(errors.InvalidArgumentError):
    """The path does not take this method."""


class ForeignHostError(errors.InvalidArgumentError):
    """The request was meant for another host, or comes from the page of one."""


class _Answer(NamedTuple):
    status: int
    type: ErrorType
    code: str | None = None


_ANSWERS: dict[type[errors.StagecoachError], _Answer] = {
    errors.InvalidArgumentError: _Answer(400, "invalid_request_error", "invalid_value"),
    errors.ContextLengthExceededError: _Answer(
        400, "invalid_request_error", "context_length_exceeded"
    ),
    ForeignHostError: _Answer(403, "invalid_request_error", "foreign_host"),
    errors.ModelNotFoundError: _Answer(404, "not_found_error", "model_not_found"),
    NotFoundError: _Answer(404, "not_found_error", "not_found"),
    PreviousResponseNotFoundError: _Answer(
        400, "invalid_request_error", "previous_response_not_found"
    ),
    MethodNotAllowedError: _Answer(405, "invalid_request_error", "method_not_allowed"),
    BodyTooLargeError: _Answer(413, "invalid_request_error", "body_too_large"),
    UnsupportedMediaTypeError: _Answer(415, "invalid_request_error", "unsupported_media_type"),
    errors.UnauthenticatedError: _Answer(401, "authentication_error", "invalid_api_key"),
    errors.QueueFullError: _Answer(429, "rate_limit_error", "queue_full"),
    errors.UnavailableError: _Answer(503, "server_error", "unavailable"),
    errors.RequestAbortedError: _Answer(503, "server_error", "aborted"),
    errors.DeadlineExceededError: _Answer(504, "timeout_error", "deadline_exceeded"),
}
_INTERNAL = _Answer(500, "server_error", "internal_error")
"""Answer to every error of another class: no client can cause or mend those."""

_RETRIED = frozenset({429, 503})


class ToldError(NamedTuple):
    """What a client is told of an error, in whatever form."""

    status: int
    """HTTP status."""
    type: ErrorType
    code: str | None
    message: str
    """With the names that the request has for its fields."""
    param: str | None
    """The offending field of the request."""


def told_error(error: errors.StagecoachError, names: FieldNames = NO_NAMES) -> ToldError:
    """Says what a client is told of an error.

    Args:
        error: What went wrong.
        names: What the request calls the fields that the error may name.
    """
    answer = _answer(error)
    param = renamed(blamed_field(error), names)
    message = in_words_of(error, lambda field: renamed(field, names)).message
    return ToldError(answer.status, answer.type, answer.code, message, param or None)


def openai_error(told: ToldError) -> ErrorResponse:
    """Writes what is told of an error as OpenAI's error object."""
    return ErrorResponse(
        error=ErrorBody(message=told.message, type=told.type, param=told.param, code=told.code)
    )


def error_body(error: errors.StagecoachError, names: FieldNames = NO_NAMES) -> ErrorResponse:
    """Writes an error as OpenAI's error object.

    Args:
        error: What went wrong.
        names: As `told_error`.
    """
    return openai_error(told_error(error, names))


def error_headers(status: int) -> dict[str, str]:
    """The headers of an error beside those of every answer."""
    headers = {}
    if status in _RETRIED:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: errors.StagecoachError, names: FieldNames = NO_NAMES) -> JSONResponse:
    """Writes an error as a whole response.

    Args:
        error: What went wrong.
        names: As `told_error`.
    """
    told = told_error(error, names)
    return JSONResponse(
        openai_error(told).model_dump(),
        status_code=told.status,
        headers=error_headers(told.status),
    )


def _answer(error: errors.StagecoachError) -> _Answer:
    return next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), _INTERNAL)
