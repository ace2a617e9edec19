"""Asks every request for its API key before anything else of it is looked at."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.doors.access.callers import Callers, current_caller
from coordinator.doors.http.errors import error_response
from coordinator.doors.http.page_routes import PAGE_PATHS
from stagecoach.contract.errors import UnauthenticatedError

OPEN_PATHS = PAGE_PATHS | {"/health", "/ready"}
"""What a load balancer asks, which tells nothing else, and the files of the page, which are the
same everywhere and ask their user for a key."""


class Authentication:
    """ASGI middleware that refuses every request without a good key.

    Args:
        app: What it wraps.
        callers: Knows the keys.
    """

    def __init__(self, app: ASGIApp, *, callers: Callers) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Names the caller for whoever answers this request, or answers it with 401."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                caller = self._callers.authenticate(Headers(scope=scope).get("authorization"))
            except UnauthenticatedError as error:
                await error_response(error)(scope, receive, send)
                return
            current_caller.set(caller)
        await self._app(scope, receive, send)
