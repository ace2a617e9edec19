"""Says with an answer how long its connection waits for another request, if it does."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEEP_ALIVE_S = "keep_alive_s"
"""Key in the state of a request under which stands how long its connection is kept; absent where it
is not."""


class KeepAliveHeader:
    """ASGI middleware that adds `keep-alive`, unless the answer ends the connection.

    Args:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back with the header."""

        async def send_kept(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept_s = scope.get("state", {}).get(KEEP_ALIVE_S)
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                if kept_s is not None and headers.get("connection", "").lower() != "close":
                    headers["keep-alive"] = f"timeout={kept_s}"
                    message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_kept)
