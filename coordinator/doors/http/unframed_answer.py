"""An answer as HTTP/1.0 knows it: without chunks (RFC 9112, 6.1)."""

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class UnframedAnswer:
    """`send` of a request of HTTP/1.0: an answer without a length ends with its connection.

    Args:
        cycle: Cycle of the request; it sends what this passes on, and closes the connection at
            the end.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._has_length = True

    async def __call__(self, message: ASGISendEvent) -> None:
        """Sends a part of the answer; whoever calls waits for the part before."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            self._has_length = b"content-length" in names
            if not self._has_length:
                self._cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and not self._has_length:
            # The cycle then passes each part on as it would pass on all of it.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
