"""How a command reaches its coordinator: the flags that say so, and the clients that they make.

A key is never a flag: the command line of a process can be read by everyone on its machine, and
shells write it into their history.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from protos.errors import InvalidArgumentError
from security.private_file import read_private

if TYPE_CHECKING:
    from coordinator.client import AsyncClient, Client

SYSTEM_CA = "system"

TlsCa = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        envvar="STAGECOACH_COORDINATOR_CA",
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
            InvalidArgumentError: The file of the key cannot be read, or others can read it.
        """
        api_key = os.environ.get("STAGECOACH_API_KEY") or None
        if api_key_file is not None:
            data = read_private(api_key_file, field="api_key_file")
            api_key = data.decode(errors="replace").strip()
            if not api_key:
                raise InvalidArgumentError(f"{api_key_file} is empty", field="api_key_file")
        if tls_ca is None:
            return cls(address, False, api_key)
        return cls(address, True if tls_ca == SYSTEM_CA else Path(tls_ca), api_key)

    def client(self) -> "Client":
        """Makes a synchronous client."""
        from coordinator.client import Client

        return Client(self.address, tls=self.tls, api_key=self.api_key)

    def async_client(self) -> "AsyncClient":
        """Makes a client for the running event loop."""
        from coordinator.client import AsyncClient

        return AsyncClient(self.address, tls=self.tls, api_key=self.api_key)
