"""Says with an early answer that the connection ends, unless what is still to come is short.

A request that is refused before its body was read, such as one that is too long, leaves that body
on its way, or with `Expect: 100-continue` unsent: nobody could say where the next request begins.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_SKIPPED_BYTES = 64 * 1024
"""Longest rest of a body that is read for nothing, so that the connection serves on."""


class UnreadBodies:
    """ASGI middleware that adds `connection: close` where it must stand.

    Args:
        app: What it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and watches how much of it was read when its answer begins."""
        num_unread = _num_bytes_to_come(scope)
        if num_unread == 0:
            await self._app(scope, receive, send)
            return

        async def receive_counted() -> Message:
            nonlocal num_unread
            message = await receive()
            if message["type"] == "http.request":
                more = message.get("more_body", False)
                num_unread = num_unread - len(message.get("body", b"")) if more else 0
            return message

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and num_unread > MAX_SKIPPED_BYTES:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive_counted, send_closing)


def _num_bytes_to_come(scope: Scope) -> float:
    """Bytes of the body of a request; infinite when it does not say, or waits to be asked."""
    if scope["type"] != "http":
        return 0
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers or "expect" in headers:
        return float("inf")
    return int(headers.get("content-length", 0))  # the parser lets only digits pass
