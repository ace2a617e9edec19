"""One HTTP connection, with limits that the HTTP library leaves to a proxy.

A client may neither send without end nor read without progress: what it holds of the coordinator
is bounded in bytes and in time.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from coordinator.http.errors import ErrorBody, ErrorResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take."""

    max_head_bytes: int = 64 * 1024
    """Of everything in a request that is not its body: request line, headers, framing."""
    request_timeout_s: float = 60.0
    """From the first byte of a request, or from connecting, to its last byte."""
    stall_timeout_s: float = 30.0
    """How long a client may leave the buffer of its response full."""
    keep_alive_s: int = 30
    """How long a connection may wait for its next request."""


class LimitedProtocol(HttpToolsProtocol):
    """The protocol of one connection. Event loop only.

    Args:
        config: Of the server.
        server_state: Of the server.
        app_state: Of the application.
        _loop: Of the server.
        limits: What the client may take.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        """Starts unconnected."""
        super().__init__(config, server_state, app_state, _loop)
        self.lost: asyncio.Future[None] = self.loop.create_future()
        """Done when the connection is closed."""
        self._limits = limits
        self._num_other_bytes = 0
        """Of the request that is being read, besides its body."""
        self._num_body_bytes = 0
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests whose response is not complete, oldest first; those after it wait for it."""
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._start_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything."""
        self._stop_request_timer()
        self._stop_stall_timer()
        self._disconnect()
        super().connection_lost(exc)
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Reads a piece of a request, or ends one that is too long in its head."""
        if self._request_timer is None:
            self._start_request_timer()
        self._num_other_bytes += len(data)
        super().data_received(data)
        # Framing of small chunks is as long as the body: twice a limit that no client comes near.
        if self._num_other_bytes > self._limits.max_head_bytes + self._num_body_bytes:
            self._refuse(431, "the head of the request is too long", "head_too_large")

    def eof_received(self) -> None:
        """The client sends no more, which is how it leaves: the connection is closed."""
        self._disconnect()

    def on_headers_complete(self) -> None:
        """Begins to answer a request, or puts it behind those that came before."""
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""
        self._num_other_bytes -= len(body)
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the reading of a request."""
        self._num_other_bytes = self._num_body_bytes = 0
        self._stop_request_timer()
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # Answered before its body was read; nothing else would end the connection.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def pause_writing(self) -> None:
        """The client reads slower than tokens come."""
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        """The client caught up."""
        self._stop_stall_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Ends a response; a connection that closes must get rid of its last bytes in time."""
        self._unanswered.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_stall_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Ends an idle connection."""
        super().timeout_keep_alive_handler()
        self._start_stall_timer()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, in the shape of all errors."""
        self._refuse(400, msg.rstrip("."), "invalid_http")

    def _start_request_timer(self) -> None:
        self._request_timer = self.loop.call_later(
            self._limits.request_timeout_s, self._on_request_timeout
        )

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _on_request_timeout(self) -> None:
        seconds = self._limits.request_timeout_s
        self._refuse(408, f"the request did not arrive in {seconds:g} s", "request_timeout")

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.stall_timeout_s, self._abort)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Ends the connection, with an answer unless one is on its way."""
        if self.transport.is_closing():
            return
        if self._unanswered and self._unanswered[0].response_started:
            self._abort()
            return
        error = ErrorBody(message=message, type="invalid_request_error", param=None, code=code)
        body = ErrorResponse(error=error).model_dump_json().encode()
        self.transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[status], len(body), body)
        )
        self._disconnect()
        self.transport.close()
        self._start_stall_timer()

    def _abort(self) -> None:
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        """Tells whatever answers that nobody listens; a write before `connection_lost` may fail."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
