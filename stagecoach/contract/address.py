"""The one grammar of HOST:PORT. Standard library only."""

import re
from ipaddress import IPv6Address
from typing import NamedTuple, Self

from stagecoach.contract.errors import InvalidArgumentError

_FORM = re.compile(r"(?:\[(?P<ipv6>[\w:.%-]+)\]|(?P<name>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})")
DEFAULT_ADDRESS = "localhost:50050"
"""Address of a coordinator on this machine that was started without further flags."""

_MAX_PORT = 65535


class Address(NamedTuple):
    """Where a server listens, or is reached."""

    host: str
    """Name, IPv4 or IPv6 address; without brackets."""
    port: int
    """In [0, 65535]. For a server that listens, 0 takes a free one."""

    @classmethod
    def parse(cls, text: str, *, field: str) -> Self:
        """Reads `HOST:PORT`, with an IPv6 address in brackets: `[::1]:50051`.

        Args:
            text: The address.
            field: Name of the option that it was given to, for the error.

        Raises:
            InvalidArgumentError: `text` has another form, no resolver looks up its host, or the
                port is above 65535.
        """
        match = _FORM.fullmatch(text) if text.isprintable() else None
        if match is None:
            hint = ", such as 127.0.0.1:50051 or [::1]:50051"
            if _is_ipv6(text) or _is_ipv6(text.rpartition(":")[0]):
                hint = ": put an IPv6 host in brackets, [HOST]:PORT"
            raise InvalidArgumentError(f"{field} {text!r} is not HOST:PORT{hint}", field=field)
        if int(match["port"]) > _MAX_PORT:
            raise InvalidArgumentError(
                f"{field} {text!r} is not HOST:PORT: port is above {_MAX_PORT}", field=field
            )
        host = match["ipv6"] or match["name"]
        try:
            host.encode("idna")  # as every resolver of Python does
        except UnicodeError as error:
            raise InvalidArgumentError(
                f"{field} {text!r} is not HOST:PORT: no such host can be looked up", field=field
            ) from error
        return cls(host, int(match["port"]))

    @property
    def url_host(self) -> str:
        """The host as in a URL: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"{self.url_host}:{self.port}"


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
