"""The HTTP port that Prometheus scrapes, served by threads of its own.

A scrape never runs on an event loop or a model thread: it reads plain numbers beside them.
"""

import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from stagecoach.contract.errors import UnavailableError

CLIENT_TIMEOUT_S = 10.0
"""Time in which a client must send its request, and take the answer."""

_log = logging.getLogger(__name__)


@contextmanager
def metrics_port(host: str, port: int, registry: CollectorRegistry) -> Iterator[str]:
    """Serves a registry at `/metrics` until the end of the block.

    Args:
        host: Name, IPv4 or IPv6 address; without brackets.
        port: 0 takes a free one.
        registry: What is served; its collectors are called from threads of the port.

    Yields:
        HOST:PORT, with the port that was taken.

    Raises:
        UnavailableError: The address cannot be bound.
    """
    shown_host = f"[{host}]" if ":" in host else host
    server_class = _Ipv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, make_wsgi_app(registry), server_class, _Handler)
    except OSError as error:
        raise UnavailableError(
            f"cannot serve metrics on {shown_host}:{port}: the address is in use or not of this"
            " machine"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics")
    thread.start()
    address = f"{shown_host}:{server.server_port}"
    _log.info("serving metrics", extra={"address": address})
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Binds; the standard library's own asks a name server for this machine's name first."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away or stalled is nothing to stop for."""
        _log.debug("a metrics request failed", exc_info=True)


class _Ipv6Server(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: Prometheus asks every few seconds."""
