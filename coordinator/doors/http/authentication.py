"""Asks every request for its API key before anything else of it is looked at."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.doors.access.callers import Callers, current_caller
from coordinator.doors.http.error_forms import error_answer
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
                caller = self._callers.authenticate(_authorization(Headers(scope=scope)))
            except UnauthenticatedError as error:
                await error_answer(error, scope)(scope, receive, send)
                return
            current_caller.set(caller)
        await self._app(scope, receive, send)


def _authorization(headers: Headers) -> str | None:
    """The header that holds the key; clients of Anthropic's API have one of their own for it."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (key and f"Bearer {key}")
