"""Makes channels to one stage: which certificate they take, and how long a connection may take.

A connection over TLS takes several round trips. So the time for the next one grows when the last
one was late, and with the time that the look at the certificate took. Both are kept until a stream
is open.
"""

import asyncio
import logging
from collections.abc import Callable

import grpc
import grpc.aio

from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.stage_errors import named
from stagecoach.contract.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    StagecoachError,
    UnauthenticatedError,
    UnavailableError,
)
from stagecoach.security.credentials import channel_credentials, read_tls
from stagecoach.security.diagnosis import Trust, explained
from stagecoach.security.role import Role
from stagecoach.security.served import certificate_of_role
from stagecoach.security.tls_files import TlsFiles

MAX_PATIENCE = 4
"""A stage that was not reached in time has twice as long the next time, up to this factor."""

NUM_HANDSHAKES = 4
"""Looks at the certificate that a call on a new connection takes as long as: a handshake, the first
frames of HTTP/2, the call, and one more as slack."""

_log = logging.getLogger(__name__)


class StageChannels:
    """Makes channels to one stage.

    Args:
        address: HOST:PORT.
        config: Deadlines.
        tls: What this coordinator shows to the stage, and whom it takes for one. None: plain text.
        is_open: Tells whether a stream to the stage is open.
    """

    def __init__(
        self,
        address: str,
        *,
        config: LinkConfig,
        tls: TlsFiles | None,
        is_open: Callable[[], bool],
    ) -> None:
        self.address = address
        self.config = config
        self.is_open = is_open
        self._tls = tls
        self._patience = 1.0
        """Times that reaching the stage may take what it may at first. Grows with what was late or
        slow, until a stream is open."""
        self._certificate: bytes | None = None
        """What the stage showed on this way to an open stream, as PEM; on a long way every look at
        it counts."""

    @property
    def timeout_s(self) -> float:
        """Seconds that reaching the stage may take now."""
        return self._patience * self.config.connect_timeout_s

    @property
    def answer_ms(self) -> int:
        """Milliseconds after which a stage that answers no ping is cut off."""
        return int(self._patience * self.config.keepalive_ms)

    def be_patient(self) -> None:
        """Gives the stage, which was late, longer the next time."""
        self._patience = min(2 * self._patience, MAX_PATIENCE)

    def forget_certificate(self) -> None:
        """Looks at the stage's certificate again before the next connection."""
        self._certificate = None

    def arrive(self) -> None:
        """Notes that a stream is open."""
        self._patience = 1.0

    async def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel connects with: it takes the certificate that was looked at, no other.

        Raises:
            UnavailableError: The stage did not show a certificate in time.
            UnauthenticatedError: The TLS files of this coordinator are not good.
            StagecoachError: The stage's certificate is not good; says why.
        """
        if self._tls is None:
            return None
        try:
            return channel_credentials(self._tls, served=await self._served(self._tls))
        except InvalidArgumentError as error:  # names a file, which clients need not hear of
            _log.error("no TLS to stage %s: %s", self.address, error.message)
            raise UnauthenticatedError(
                f"stage {self.address}: the TLS files of this coordinator are not good; its log"
                " says why"
            ) from error

    def connect(
        self, credentials: grpc.ChannelCredentials | None, further_options: list[tuple[str, int]]
    ) -> grpc.aio.Channel:
        """Returns a channel, which connects with the first call."""
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_permit_without_calls", 1),
            *further_options,
        ]
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    async def explained(self, error: StagecoachError) -> StagecoachError:
        """Names the stage in an error, or in what is wrong with the certificates of either side."""
        trust = None if self._tls is None else Trust(files=self._tls)
        cause = await asyncio.to_thread(explained, error, self.address, trust)
        return named(cause, self.address)

    async def _served(self, tls: TlsFiles) -> bytes:
        """The stage's certificate, which has to be that of a stage."""
        read_tls(tls)  # says which file is not good; a handshake would only fail
        if self._certificate is not None:
            return self._certificate
        try:
            served = await asyncio.to_thread(
                certificate_of_role, self.address, tls, Role.STAGE, timeout_s=self.timeout_s
            )
        except DeadlineExceededError as error:
            self.be_patient()
            raise UnavailableError(f"stage {self.address}: {error.message}") from error
        except StagecoachError as error:
            raise await self.explained(error) from error
        wanted = NUM_HANDSHAKES * served.took_s / self.config.connect_timeout_s
        self._patience = max(self._patience, min(wanted, MAX_PATIENCE))
        if not self.is_open():
            self._certificate = served.certificate
        return served.certificate
