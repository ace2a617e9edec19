"""What both clients agree on about the connection to a coordinator."""

import asyncio
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Self

from grpc import ChannelCredentials, RpcError, StatusCode, ssl_channel_credentials

from stagecoach.client.argument_names import argument_name, unknown_argument
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import (
    IncompatibleError,
    InvalidArgumentError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.contract.keepalive import keepalive_options
from stagecoach.contract.status import from_rpc_error

if TYPE_CHECKING:
    from stagecoach.security.diagnosis import Trust

READY_POLL_S = 0.1
"""Pause between two questions whether the coordinator is ready."""

_MAX_MESSAGE_BYTES = 64 * 2**20
"""Most bytes of one answer. Tokens that a slow reader has not taken come in one message."""
_KEEPALIVE_MS = 20_000
_PING_ANSWER_MS = 120_000
"""How long an answer to a ping may take: it waits behind a prompt of megabytes that goes over a
slow link."""

_LOOPBACK = ("localhost:", "127.", "[::1]:")


TlsSetting = bool | str | PathLike[str]
"""False: plain text. True: TLS, trusting the authorities of the system. A path: TLS, trusting the
authority whose certificate lies there."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The coordinator that a client talks to, and what the two know each other by."""

    address: str
    """HOST:PORT."""
    trust: "Trust | None" = None
    """Whom the client trusts over TLS; None for plain text."""
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, address: str, *, tls: TlsSetting, api_key: str | None) -> Self:
        """Reads what the caller of a client gave.

        Raises:
            InvalidArgumentError: The authority cannot be read, or no header can carry the key.
        """
        if api_key is not None:
            api_key = api_key.strip()  # files of secrets end in a line feed
            if not api_key.isascii() or not api_key.isprintable():
                raise InvalidArgumentError(
                    "api_key has characters other than printable ASCII", field="api_key"
                )
        return cls(address, _trust(tls), api_key)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    @property
    def credentials(self) -> ChannelCredentials | None:
        """What the channel connects with; None for plain text."""
        return None if self.trust is None else ssl_channel_credentials(self.trust.authority)


def _trust(tls: TlsSetting) -> "Trust | None":
    if tls is False:
        return None
    # Here, because a client of plain text needs no certificates read.
    from stagecoach.security.credentials import read_authority
    from stagecoach.security.diagnosis import Trust

    return Trust() if tls is True else Trust(authority=read_authority(Path(tls), "tls"))


def channel_options(address: str) -> list[tuple[str, int]]:
    """Returns the options of a channel to `address`.

    Proxies of the environment are honoured, except on the way to this very machine.
    """
    return [
        ("grpc.enable_http_proxy", 0 if address.startswith(_LOOPBACK) else 1),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # A coordinator whose machine vanished is noticed while a completion runs.
        *keepalive_options(
            _KEEPALIVE_MS, unacknowledged_ms=_KEEPALIVE_MS, answer_ms=_PING_ANSWER_MS
        ),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Its own connection, which closes with the client.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def read_error(error: RpcError, peer: Peer) -> StagecoachError:
    """Reads the error that ended a call, in the words of the caller.

    It names arguments as the caller wrote them, and the coordinator if that cannot be reached.
    May block for some seconds, to find out why a connection did not come about.
    """
    sent = from_rpc_error(error)
    unknown = unknown_argument(sent) if isinstance(sent, InvalidArgumentError) else None
    if unknown is not None:
        name, version = unknown
        return IncompatibleError(
            f"{name}: the coordinator at {peer.address} is of version {version}, which does not"
            " know it: update the coordinator",
            field=name,
        )
    read = in_words_of(sent, argument_name)
    if error.code() is StatusCode.UNIMPLEMENTED:
        return IncompatibleError(
            f"{peer.address} does not know this call ({read.message}): it is a coordinator of "
            "another version, or none"
        )
    if not isinstance(read, UnavailableError):
        return read
    # Here, because a client that has no trouble needs no certificates read.
    from stagecoach.security.diagnosis import explained

    read = explained(read, peer.address, peer.trust)
    return type(read)(f"coordinator at {peer.address}: {read.message}", **read.details)


async def read_error_async(error: RpcError, peer: Peer) -> StagecoachError:
    """Reads the error that ended a call, as `read_error` does, without blocking the event loop."""
    return await asyncio.to_thread(read_error, error, peer)
