"""Names every request, and answers for what was not foreseen.

The name is in the headers `x-request-id` and `request-id` of every response, in the ids of
completions, and in the coordinator's log.
"""

import logging
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.doors.http.error_forms import error_answer
from stagecoach.contract.errors import InternalError

REQUEST_ID_HEADER = "x-request-id"
_NAMES = (REQUEST_ID_HEADER.encode(), b"request-id")
"""Anthropic's clients read the latter."""

_log = logging.getLogger(__name__)


class RequestIds:
    """ASGI middleware, outside of everything but the server.

    Args:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; a bug becomes a 500 without details, or the end of the stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = request_id
        headers = [(name, request_id.encode()) for name in _NAMES]
        is_started = False

        async def send_named(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:  # a bug; whoever asked shall be told no more of it than an id
            _log.exception("internal error in request %s", request_id)
            if is_started:
                raise  # the server ends the connection in the middle of the response
            error = InternalError(f"internal error; the coordinator's log has it as {request_id}")
            await error_answer(error, scope)(scope, receive, send_named)
