"""One HTTP connection, with limits that the HTTP library leaves to a proxy.

A client may neither send without end nor read without progress: what it holds of the coordinator
is bounded in bytes and in time.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from coordinator.doors.http.errors import ErrorBody, ErrorResponse
from coordinator.doors.http.keep_alive import KEEP_ALIVE_S
from coordinator.doors.http.unframed_answer import UnframedAnswer

_FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take."""

    max_head_bytes: int = 64 * 1024
    """Most bytes of everything in a request that is not its body: request line, headers,
    framing."""
    max_target_bytes: int = 32 * 1024
    """Most bytes of the target of a request; four times what every server should take (RFC 9112,
    3)."""
    request_timeout_s: float = 60.0
    """Time from the first byte of a request, or from connecting, to its last byte."""
    stall_timeout_s: float = 30.0
    """How long a client may leave the buffer of its response full."""
    keep_alive_s: int = 75
    """How long a connection may wait for its next request; longer than the pools of the proxies in
    front of it keep one, and said in `Keep-Alive` to those that ask."""
    linger_s: float = 2.0
    """How long a connection that is to be closed waits for more of a request that was answered or
    refused before its end: closed at once, it would take the answer back."""


class LimitedProtocol(HttpToolsProtocol):
    """The protocol of one connection. Event loop only.

    Args:
        config: Configuration of the server.
        server_state: State of the server.
        app_state: State of the application.
        _loop: Event loop of the server.
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
        super().__init__(config, server_state, app_state, _loop)
        self.lost: asyncio.Future[None] = self.loop.create_future()
        """Done when the connection is closed."""
        self._limits = limits
        self._num_other_bytes = 0
        """Bytes of the request that is being read, besides its body."""
        self._num_body_bytes = 0
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Requests whose response is not complete, oldest first; those after it wait for it."""
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        """Set while the connection only waits for the end of a request."""
        self._is_whole = True
        """Whether the request that was begun last has arrived to its end."""
        self._is_repeated = False
        """While the parser reads the head of a request again."""
        self._is_refused = False
        """True when nothing is read any more, but taken and dropped."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._start_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything."""
        self._stop_request_timer()
        self._stop_stall_timer()
        self._stop_linger_timer()
        self._disconnect()
        super().connection_lost(exc)
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Reads a piece of a request, or ends one that is too long in its head."""
        if self._is_refused:
            if self._request_timer is not None:  # which ends the connection, however much comes
                self._start_linger_timer()
            return
        if self._request_timer is None:
            self._start_request_timer()
        if self._linger_timer is not None:
            self._start_linger_timer()
        self._num_other_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(memoryview(data))
        # Framing of small chunks is as long as the body: twice a limit that no client comes near.
        if self._num_other_bytes > self._limits.max_head_bytes + self._num_body_bytes:
            self._refuse(431, "the head of the request is too long", "head_too_large")

    def eof_received(self) -> None:
        """The client sends no more, which is how it leaves: the connection is closed."""
        self._disconnect()

    def on_message_begin(self) -> None:
        """Begins to read a request."""
        if not self._is_repeated:
            self._is_whole = False
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Reads a piece of the target of a request."""
        if self._is_repeated:
            return
        super().on_url(url)
        if len(self.url) > self._limits.max_target_bytes:
            self._refuse(414, "the target of the request is too long", "target_too_long")
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        """Reads a header of a request, or a trailer."""
        if not self._is_repeated:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begins to answer a request, or puts it behind those that came before."""
        if self._is_repeated:
            self._is_repeated = False
            return
        is_old = self.parser.get_http_version() < "1.1"
        self._check_host(is_old=is_old)
        self._take_host_of_target()
        if is_old:
            self.expect_100_continue = False  # it knows no answer before the answer
        super().on_headers_complete()
        cycle = self.cycle
        if is_old:
            cycle.keep_alive = False
            cycle.send = UnframedAnswer(cycle)  # type: ignore[method-assign]  # not yet begun
        cycle.transport = _LingeringTransport(self)  # type: ignore[assignment]  # all that it uses
        if cycle.keep_alive:
            cycle.scope["state"][KEEP_ALIVE_S] = self._limits.keep_alive_s
        self._unanswered.append(cycle)

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""
        self._num_other_bytes -= len(body)
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the reading of a request."""
        if self.parser.should_upgrade():
            return  # what follows is read as its body, by another parser
        self._is_whole = True
        if self._linger_timer is not None:
            self._end_lingering()
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

    def shutdown(self) -> None:
        """Closes the connection, or promises no more that it stays while it answers."""
        if not self.transport.is_closing():
            super().shutdown()
        for cycle in self._unanswered:
            cycle.scope["state"].pop(KEEP_ALIVE_S, None)

    def close(self) -> None:
        """Closes the connection once what is on its way is here, so that the answer stays."""
        if self._is_whole:
            self._close_now()
        elif self._linger_timer is None:
            self._start_linger_timer()

    @property
    def is_closing(self) -> bool:
        """True when nothing is answered any more."""
        return self._linger_timer is not None or self.transport.is_closing()

    def _parse(self, data: memoryview) -> None:
        """Reads on; goes on in HTTP/1.1 when a request offers another protocol (RFC 9110, 7.8)."""
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    data = data[offer.args[0] :]
                    self._read_head_again()
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _read_head_again(self) -> None:
        """Lets a new parser take the body, which the old one took for the other protocol."""
        framing = b"".join(
            b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING_HEADERS
        )
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the one before
        self._is_repeated = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)

    def _check_host(self, *, is_old: bool) -> None:
        """Refuses a request with no host or several (RFC 9112, 3.2); HTTP/1.0 knew none."""
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts == 1 or (num_hosts == 0 and is_old):
            return
        self._refuse(
            400, f"the request has {num_hosts} Host headers, must have one", "invalid_http"
        )
        raise _RefusedError

    def _take_host_of_target(self) -> None:
        """Puts the host of a target that has one in the place of the header (RFC 9112, 3.2.2)."""
        host = b"" if self.url.startswith(b"/") else _host_of(self.url)
        if host:
            others = [header for header in self.headers if header[0] != b"host"]
            self.headers[:] = [(b"host", host), *others]

    def _start_request_timer(self) -> None:
        self._request_timer = self.loop.call_later(
            self._limits.request_timeout_s, self._on_request_timeout
        )

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _on_request_timeout(self) -> None:
        self._request_timer = None
        if self._is_refused:
            self._end_lingering()
            return
        seconds = self._limits.request_timeout_s
        self._refuse(408, f"the request did not arrive in {seconds:g} s", "request_timeout")

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.stall_timeout_s, self._abort)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _start_linger_timer(self) -> None:
        self._stop_linger_timer()
        self._linger_timer = self.loop.call_later(self._limits.linger_s, self._end_lingering)

    def _end_lingering(self) -> None:
        """Closes the connection; the last bytes must be taken in time."""
        self._close_now()
        self._start_stall_timer()

    def _close_now(self) -> None:
        """Once: Python 3.11.2 cannot abort what TLS has closed twice."""
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_linger_timer(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Ends the connection, with an answer unless one is on its way.

        What is sent is taken a while longer, for what is left unread would reset the connection.
        """
        if self._is_refused or self.transport.is_closing():
            return
        if not self._is_whole and not self._unanswered and self._has_answer:
            self.transport.close()  # a second answer would be taken for that of the next request
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
        self._is_refused = True
        if self.transport.can_write_eof():  # whoever reads to the end need not wait for that
            self.transport.write_eof()
        self._start_linger_timer()

    def _abort(self) -> None:
        self._disconnect()
        self.transport.abort()

    @property
    def _has_answer(self) -> bool:
        """True when the request that was begun last has got its whole answer."""
        cycle = self.cycle
        return cycle is not None and cycle.scope is self.scope and cycle.response_complete

    def _disconnect(self) -> None:
        """Tells whatever answers that nobody listens; a write before `connection_lost` may fail."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()


class _RefusedError(Exception):
    """Stops the parser inside a request that was refused."""


class _LingeringTransport:
    """What an answer needs of its transport; closing leaves the client time to read it.

    Args:
        connection: Connection of the transport.
    """

    def __init__(self, connection: LimitedProtocol) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.is_closing

    def close(self) -> None:
        self._connection.close()


def _host_of(target: bytes) -> bytes:
    """The host and port of a target in absolute form, such as `http://localhost:8000/health`."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return b""
    if not url.host:
        return b""
    host = b"[%b]" % url.host if b":" in url.host else url.host
    return host if url.port is None else b"%b:%d" % (host, url.port)
