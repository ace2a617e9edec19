"""A connection that is only looked at, to a server that does not want it."""

import gc
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from stagecoach.security.handshake import tls_connection
from tests.open_files import open_files

_NUM_CONNECTIONS = 20
_RESET = struct.pack("ii", 1, 0)
"""A linger of no time: closing sends a reset."""


@pytest.fixture
def resetting() -> Iterator[int]:
    """The port of a server that resets each connection as soon as it is there."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(_NUM_CONNECTIONS):
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()

    thread = threading.Thread(target=serve, name="resets")
    thread.start()
    yield listener.getsockname()[1]
    thread.join()
    listener.close()


class _SlowContext(ssl.SSLContext):
    """Wraps a socket only when a server has had the time to reset it, if it is connected."""

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        time.sleep(0.02)
        return super().wrap_socket(*arguments, **options)


def context() -> ssl.SSLContext:
    made = _SlowContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def test_no_socket_stays_open_whenever_the_other_side_resets_it(resetting: int) -> None:
    mine = context()
    gc.collect()  # what earlier tests left would be warned of
    before = open_files()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(_NUM_CONNECTIONS):
            with pytest.raises(OSError, match=r"reset|EOF|closed|violation"):
                tls_connection(mine, "127.0.0.1", resetting, timeout_s=20)
        gc.collect()
    assert [str(one.message) for one in seen if one.category is ResourceWarning] == []
    assert open_files() - before == set()


def test_a_host_with_an_address_that_nobody_serves_is_reached_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        hello: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                hello.append(connection.recv(1))

        thread = threading.Thread(target=serve, name="server")
        thread.start()
        with pytest.raises(OSError, match=r"reset|EOF|closed|violation"):
            tls_connection(context(), "box", port, timeout_s=20)
        thread.join()
    assert hello == [b"\x16"]
