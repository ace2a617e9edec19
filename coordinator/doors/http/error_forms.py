"""The form that an error has for its client: OpenAI's, or that of the API that was asked."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from fastapi.responses import JSONResponse
from starlette.types import Scope

from coordinator.doors.http.errors import (
    ErrorResponse,
    ToldError,
    error_headers,
    openai_error,
    told_error,
)
from coordinator.doors.http.field_names import field_names_of
from coordinator.doors.http.lenient_paths import home_path
from coordinator.doors.http.schema.anthropic_answer import (
    AnthropicError,
    AnthropicErrorResponse,
    AnthropicErrorType,
)
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.ollama_answer import OllamaErrorResponse
from stagecoach.contract.errors import StagecoachError

_ANTHROPIC_TYPES: Mapping[int, AnthropicErrorType] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)
"""Every other status is a wrong request."""


ERROR_MODELS: tuple[type[ResponseModel], ...] = (
    ErrorResponse,
    AnthropicErrorResponse,
    OllamaErrorResponse,
)
"""All that errors are written as."""


def error_model(path: str) -> type[ResponseModel]:
    """What an error at a path is written as."""
    return _form_of(path).model


def error_event(error: StagecoachError, scope: Scope) -> ResponseModel:
    """Writes an error as the last event of a stream.

    Args:
        error: What went wrong.
        scope: ASGI's scope of the request.
    """
    return _form_for(scope).write(told_error(error, field_names_of(scope)), scope)


def error_answer(error: StagecoachError, scope: Scope) -> JSONResponse:
    """Writes an error as a whole response.

    Args:
        error: What went wrong.
        scope: ASGI's scope of the request.
    """
    told = told_error(error, field_names_of(scope))
    return JSONResponse(
        _form_for(scope).write(told, scope).model_dump(exclude_unset=True),
        status_code=told.status,
        headers=error_headers(told.status),
    )


def is_for_anthropic(scope: Scope) -> bool:
    """Whether a request of a path that several APIs have is of Anthropic's.

    Args:
        scope: ASGI's scope of the request.
    """
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def _openai(told: ToldError, _: Scope) -> ResponseModel:
    return openai_error(told)


def _anthropic(told: ToldError, scope: Scope) -> ResponseModel:
    error = AnthropicError(
        type=_ANTHROPIC_TYPES.get(told.status, "invalid_request_error"), message=told.message
    )
    if told.param == "thread":
        error.details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return AnthropicErrorResponse(
        type="error", error=error, request_id=scope.get("state", {}).get("request_id", "")
    )


def _ollama(told: ToldError, _: Scope) -> ResponseModel:
    return OllamaErrorResponse(error=told.message)


class _Form(NamedTuple):
    model: type[ResponseModel]
    write: Callable[[ToldError, Scope], ResponseModel]


_OPENAI = _Form(ErrorResponse, _openai)
_ANTHROPIC = _Form(AnthropicErrorResponse, _anthropic)
_OF_BOTH = "/v1/models"
_FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "/v1/messages": _ANTHROPIC,
        "/api": _Form(OllamaErrorResponse, _ollama),
    }
)
"""By what paths begin with; elsewhere it is OpenAI's."""


def _form_for(scope: Scope) -> _Form:
    path = scope["path"]
    if _begins(home_path(path), _OF_BOTH) and is_for_anthropic(scope):
        return _ANTHROPIC
    return _form_of(path)


def _form_of(path: str) -> _Form:
    path = home_path(path)
    return next((form for begin, form in _FORMS.items() if _begins(path, begin)), _OPENAI)


def _begins(path: str, beginning: str) -> bool:
    return path == beginning or path.startswith(f"{beginning}/")
