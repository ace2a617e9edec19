"""How a command reaches its coordinator: the flags that say so, and the clients that they make.

A key is never a flag: the command line of a process can be read by everyone on its machine, and
shells write it into their history.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.private_file import read_private

if TYPE_CHECKING:
    from stagecoach.client import AsyncClient, Client

SYSTEM_CA = "system"

COORDINATOR = "STAGECOACH_COORDINATOR"
COORDINATOR_CA = "STAGECOACH_COORDINATOR_CA"
"""The variables that say where the coordinator is, and which CA it is checked by."""

TlsCa = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        envvar=COORDINATOR_CA,
        help=f"Use TLS, and trust the CA in this file; '{SYSTEM_CA}': those of this machine.",
    ),
]

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="STAGECOACH_API_KEY_FILE",
        help="File that holds the API key; or set STAGECOACH_API_KEY.",
    ),
]


def tls_setting(tls_ca: str | None) -> bool | Path:
    """What `--tls-ca` says of a coordinator, as the clients of the SDK take it."""
    if tls_ca is None:
        return False
    return True if tls_ca == SYSTEM_CA else Path(tls_ca)


def check_address(address: str, *, field: str = "coordinator") -> str:
    """Returns the address of a server if it is one.

    Args:
        address: As it was given.
        field: The parameter that holds it.

    Raises:
        InvalidArgumentError: It is not HOST:PORT; says where it may have come from.
    """
    try:
        Address.parse(address, field=field)
    except InvalidArgumentError:
        source = " (from STAGECOACH_COORDINATOR)" if os.environ.get(COORDINATOR) == address else ""
        hint = ", without http: and of gRPC, not HTTP" if "://" in address else ""
        raise InvalidArgumentError(
            f"{field} {address!r}{source} must be HOST:PORT{hint}", field=field
        ) from None
    return address


@dataclass(frozen=True, slots=True)
class Connection:
    """What the flags of a command say about its coordinator."""

    address: str
    tls: bool | Path
    api_key: str | None

    def __repr__(self) -> str:
        """Without the key."""
        return f"Connection({self.address!r})"

    @classmethod
    def of(cls, address: str, tls_ca: str | None, api_key_file: Path | None) -> Self:
        """Reads the flags, and the key from its file or from the environment.

        Raises:
            InvalidArgumentError: The address is none, or the file of the key cannot be read, or
                others can read it.
        """
        api_key = os.environ.get("STAGECOACH_API_KEY", "").strip() or None
        if api_key_file is not None:
            data = read_private(api_key_file, field="api_key_file")
            api_key = data.decode(errors="replace").strip()
            if not api_key:
                raise InvalidArgumentError(
                    f"api_key_file {api_key_file} is empty", field="api_key_file"
                )
        return cls(check_address(address), tls_setting(tls_ca), api_key)

    def client(self) -> "Client":
        """Makes a synchronous client."""
        from stagecoach.client import Client

        return Client(self.address, tls=self.tls, api_key=self.api_key)

    def async_client(self) -> "AsyncClient":
        """Makes a client for the running event loop."""
        from stagecoach.client import AsyncClient

        return AsyncClient(self.address, tls=self.tls, api_key=self.api_key)
