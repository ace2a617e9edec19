"""A TLS connection for a look at the other side."""

import socket
import ssl
from typing import Any


def tls_connection(
    context: ssl.SSLContext, host: str, port: int, *, timeout_s: float
) -> ssl.SSLSocket:
    """Connects and makes the handshake; blocks. The caller closes the connection.

    The socket is wrapped before it is connected: `wrap_socket` never closes one that the other side
    resets meanwhile.

    Args:
        context: What this side shows, and what it checks.
        host: Every address of it is tried in turn.
        port: TCP.
        timeout_s: Time limit of the connection to an address, and of each part of the handshake.

    Raises:
        ssl.SSLError: The handshake failed.
        OSError: No address can be reached, or the other side ended the connection.
    """
    *others, last = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for address in others:
        try:
            return _connected(context, address, host, timeout_s)
        except ssl.SSLError:
            raise
        except OSError:
            continue
    return _connected(context, last, host, timeout_s)


def _connected(
    context: ssl.SSLContext, address: tuple[Any, ...], host: str, timeout_s: float
) -> ssl.SSLSocket:
    family, kind, protocol, _, target = address
    with socket.socket(family, kind, protocol) as unwrapped:  # open only if it cannot be wrapped
        connection = context.wrap_socket(unwrapped, server_hostname=host)
    try:
        connection.settimeout(timeout_s)
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection
