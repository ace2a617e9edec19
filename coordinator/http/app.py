"""The application behind the HTTP door: every route, and the shape of every error."""

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from coordinator.access.callers import Callers
from coordinator.http.authentication import Authentication
from coordinator.http.completion_routes import completion_routes
from coordinator.http.door import Door
from coordinator.http.errors import (
    MethodNotAllowedError,
    NotFoundError,
    error_response,
)
from coordinator.http.event_stream import Patience
from coordinator.http.field_names import field_names_of
from coordinator.http.ignored_fields import IgnoredFieldsHeader
from coordinator.http.model_routes import model_routes
from coordinator.http.openapi import describe
from coordinator.http.page_routes import page_routes
from coordinator.http.request_ids import RequestIds
from coordinator.http.state_routes import state_routes
from coordinator.http.token_routes import token_routes
from protos import __version__
from protos.errors import InvalidArgumentError, StagecoachError


def create_app(
    door: Door, *, callers: Callers | None = None, patience: Patience | None = None
) -> FastAPI:
    """Makes the application of one coordinator.

    Args:
        door: Holds the engine, now or later; requests are refused as unavailable until it does.
        callers: Whose API keys are good. None: no key is needed.
        patience: How long the client of a stream is left without a byte; None for the usual.
    """
    app = FastAPI(
        title="Stagecoach",
        version=__version__,
        description="An OpenAI-compatible API for one model that is split over several machines.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(state_routes(door))
    app.include_router(model_routes(door))
    app.include_router(page_routes(door))
    app.include_router(completion_routes(door, patience or Patience()))
    app.include_router(token_routes(door))
    describe(app, asks_for_keys=callers is not None)
    if callers is not None:
        app.add_middleware(Authentication, callers=callers)
    app.add_middleware(IgnoredFieldsHeader)
    app.add_middleware(RequestIds)
    app.add_exception_handler(StagecoachError, _on_typed_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


async def _on_typed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StagecoachError)
    return error_response(error, field_names_of(request.scope))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Gives what the framework itself refuses the shape of all errors."""
    assert isinstance(error, HTTPException)
    typed: StagecoachError
    if error.status_code == 404:
        typed = NotFoundError(f"there is nothing at {request.url.path[:128]!r}")
    elif error.status_code == 405:
        typed = MethodNotAllowedError(f"{request.url.path[:128]!r} does not take this method")
    else:
        typed = InvalidArgumentError(str(error.detail))
    response = error_response(typed)
    response.headers.update(error.headers or {})
    return response
