"""The application behind the HTTP door: every route, and the shape of every error."""

from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from coordinator.doors.access.callers import Callers
from coordinator.doors.http.authentication import Authentication
from coordinator.doors.http.completion_routes import completion_routes
from coordinator.doors.http.cross_origin import CrossOrigin
from coordinator.doors.http.door import Door
from coordinator.doors.http.embedding_routes import embedding_routes
from coordinator.doors.http.error_forms import error_answer
from coordinator.doors.http.errors import MethodNotAllowedError, NotFoundError
from coordinator.doors.http.event_stream import Patience
from coordinator.doors.http.head_requests import HeadRequests
from coordinator.doors.http.host_guard import AllowedHosts, HostGuard
from coordinator.doors.http.ignored_fields import IGNORED_HEADER, IgnoredFieldsHeader
from coordinator.doors.http.keep_alive import KeepAliveHeader
from coordinator.doors.http.lenient_paths import LenientPaths
from coordinator.doors.http.message_routes import message_routes
from coordinator.doors.http.model_routes import model_routes
from coordinator.doors.http.ollama_embedding_routes import ollama_embedding_routes
from coordinator.doors.http.ollama_model_routes import ollama_model_routes
from coordinator.doors.http.ollama_routes import ollama_routes
from coordinator.doors.http.openapi import describe
from coordinator.doors.http.page_routes import page_routes
from coordinator.doors.http.request_ids import REQUEST_ID_HEADER, RequestIds
from coordinator.doors.http.responses_routes import responses_routes
from coordinator.doors.http.state_routes import state_routes
from coordinator.doors.http.token_routes import token_routes
from coordinator.doors.http.unread_bodies import UnreadBodies
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.version import __version__

EXPOSED_HEADERS = (REQUEST_ID_HEADER, IGNORED_HEADER, "retry-after")
"""What a page of another origin may read of an answer, beside its body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """What an application may be told beside its door."""

    callers: Callers | None = None
    """Whose API keys are good. None: no key is needed."""
    allowed_hosts: AllowedHosts | None = None
    """Names by which it may be called. None: any."""
    cors_origins: tuple[str, ...] = ()
    """Origins of pages that may ask and read the answer; `*` for all."""
    patience: Patience = field(default_factory=Patience)
    """How long the client of a stream is left without a byte."""


def create_app(door: Door, options: AppOptions | None = None) -> FastAPI:
    """Makes the application of one coordinator.

    Args:
        door: Holds the models, now or later; requests are refused as unavailable until it does.
        options: None for the usual.
    """
    options = options or AppOptions()
    app = FastAPI(
        title="Stagecoach",
        version=__version__,
        description="An OpenAI-compatible API for models that are split over several machines.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(state_routes(door))
    app.include_router(model_routes(door))
    app.include_router(page_routes(door))
    app.include_router(completion_routes(door, options.patience))
    app.include_router(embedding_routes(door))
    app.include_router(message_routes(door, options.patience))
    app.include_router(ollama_routes(door, options.patience))
    app.include_router(ollama_embedding_routes(door))
    app.include_router(ollama_model_routes(door))
    app.include_router(responses_routes(door, options.patience))
    app.include_router(token_routes(door))
    describe(app, asks_for_keys=options.callers is not None)
    _wrap(app, options)
    app.add_exception_handler(StagecoachError, _on_typed_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def _wrap(app: FastAPI, options: AppOptions) -> None:
    """Puts around the routes what looks at every request; what is added last sees it first."""
    if options.callers is not None:
        app.add_middleware(Authentication, callers=options.callers)
    app.add_middleware(HeadRequests)
    app.add_middleware(LenientPaths)
    app.add_middleware(IgnoredFieldsHeader)
    if options.cors_origins:
        app.add_middleware(
            CrossOrigin,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            allow_private_network=True,
        )
    if options.allowed_hosts is not None:
        app.add_middleware(HostGuard, allowed=options.allowed_hosts)
    app.add_middleware(UnreadBodies)
    app.add_middleware(KeepAliveHeader)
    app.add_middleware(RequestIds)


async def _on_typed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StagecoachError)
    return error_answer(error, request.scope)


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
    response = error_answer(typed, request.scope)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["allow"] = ", ".join(sorted(_methods_at(request)))
    return response


def _methods_at(request: Request) -> set[str]:
    """What the path of a request takes, of all routes that have it."""
    methods = {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
    return methods | {"HEAD"} if "GET" in methods else methods
