"""The life of the HTTP door: bind, answer, drain, stop; uvicorn inside the coordinator's own loop.

The process's signals stay the coordinator's, and the address is bound before the engine exists.
"""

import asyncio
import logging
import socket
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from coordinator.doors.http.connection import ConnectionLimits, LimitedProtocol
from stagecoach.contract.address import Address
from stagecoach.contract.errors import UnavailableError
from stagecoach.security.server_context import server_context
from stagecoach.security.tls_files import TlsFiles

_BACKLOG = 2048
_SEND_BUFFER_BYTES = 64 * 1024
_KEEP_ALIVE_MARGIN_S = 1
"""So that of two that count the same time the client is the first to end, not in a request."""
_CLOSING_GRACE_S = 1.0
"""Time for the last bytes on their way, after the engine has ended all requests."""

_log = logging.getLogger(__name__)


class HttpServer:
    """An HTTP server around one application. Event loop only.

    Args:
        listen: Where; port 0 takes a free one.
        app: What answers.
        limits: What one connection may take.
        tls: Who it is, for HTTPS. None: plain HTTP.
    """

    def __init__(
        self,
        listen: Address,
        app: ASGIApp,
        limits: ConnectionLimits,
        *,
        tls: TlsFiles | None = None,
    ) -> None:
        protocol = partial(LimitedProtocol, limits=limits)
        self._listen = listen
        self._scheme = "http" if tls is None else "https"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=limits.keep_alive_s + _KEEP_ALIVE_MARGIN_S,
                ssl_context_factory=None if tls is None else lambda *_: server_context(tls),
            )
        )
        self._state = self._server.server_state
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Binds and answers.

        Returns:
            HOST:PORT, with the port that was taken.

        Raises:
            UnavailableError: The address cannot be bound.
            InvalidArgumentError: The TLS files are not good.
        """
        bound = _bound_socket(self._listen)
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[bound])
        self._ticking = asyncio.create_task(self._server.main_loop(), name="http-server")
        address = str(self._listen._replace(port=bound.getsockname()[1]))
        _log.info("listening on %s://%s", self._scheme, address)
        return address

    async def stop(self) -> None:
        """Ends every connection and closes the port; call it once the engine is closed."""
        if self._ticking is None:
            return
        self._ticking.cancel()
        for server in self._server.servers:
            server.close()
        connections = [one for one in self._state.connections if isinstance(one, LimitedProtocol)]
        for connection in connections:
            connection.shutdown()
        if connections:
            await asyncio.wait([one.lost for one in connections], timeout=_CLOSING_GRACE_S)
        for connection in connections:
            if not connection.lost.done():
                connection.transport.abort()
        for task in self._state.tasks:
            task.cancel()
        await asyncio.wait({self._ticking, *self._state.tasks})


def _bound_socket(listen: Address) -> socket.socket:
    """A socket that is bound, not yet listening.

    Raises:
        UnavailableError: The host is not known, or the address cannot be bound.
    """
    try:
        found = socket.getaddrinfo(*listen, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        bound = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {listen} for HTTP ({error.strerror or error}): choose another"
            " address, or none with --no-http"
        ) from error
    # Accepted sockets inherit it; the kernel would hold megabytes for a client that does not read.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return bound
