"""Where a server may listen: on this machine alone, unless it is protected."""

import ipaddress
import socket

from stagecoach.contract.errors import InvalidArgumentError


def check_bind(
    host: str, *, what: str, remedy: str | None, insecure: bool, field: str = "listen"
) -> None:
    """Refuses an address that other machines can reach while it is not protected.

    Args:
        host: Name or address to listen on; brackets around an IPv6 address are all right.
        what: Who listens, for the message.
        remedy: What would protect it, for the message. None: it is protected.
        insecure: The operator has allowed it by name.
        field: Name of the option that holds the address.

    Raises:
        InvalidArgumentError: Says which flags are missing.
    """
    if remedy is None or insecure or is_loopback(host):
        return
    raise InvalidArgumentError(
        f"{field}: {what} would listen on {host}, where other machines can reach it, without"
        " protection: "
        f"{remedy}; or listen on 127.0.0.1; or --insecure-bind where the network itself is "
        "safe",
        field=field,
    )


def is_loopback(host: str) -> bool:
    """True when only this machine can reach a server that listens on `host`.

    A name counts when all of its addresses do; one that cannot be looked up does not.
    """
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
