"""A small real reverse proxy that serves a door below a path, and hands on what comes at once."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OF_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding"})


class PrefixProxy(ThreadingHTTPServer):
    """Strips the prefix, and answers what is outside of it with 404.

    Args:
        prefix: Path that it serves, with a slash before it and none behind it.
        target: HOST:PORT of the door.
    """

    daemon_threads = True

    def __init__(self, prefix: str, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix = prefix
        self.target = target
        self.asked: list[str] = []
        """Paths as they came."""
        self.open_streams: list[_Handler] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}/"

    def cut(self) -> None:
        """Ends the connections of answers that are under way, without their end."""
        for handler in self.open_streams:
            handler.connection.shutdown(2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PrefixProxy

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["content-length"])))

    def _pass_on(self, body: bytes | None) -> None:
        self.close_connection = True
        self.server.asked.append(self.path)
        prefix = self.server.prefix
        if self.path == prefix:
            self.send_response(301)
            self.send_header("location", f"{prefix}/")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        if not self.path.startswith(f"{prefix}/"):
            self.send_error(404)
            return
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _OF_CONNECTION
        }
        behind = http.client.HTTPConnection(self.server.target)
        try:
            behind.request(self.command, self.path.removeprefix(prefix), body, headers)
            self._answer(behind.getresponse())
        finally:
            behind.close()

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_CONNECTION:
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.server.open_streams.append(self)
        try:
            while piece := answer.read1(2**16):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            pass  # the browser went, or the test cut it
        finally:
            self.server.open_streams.remove(self)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def proxied(prefix: str, target: str) -> Iterator[PrefixProxy]:
    """Runs a proxy in a thread; stops it behind the block."""
    with PrefixProxy(prefix, target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
