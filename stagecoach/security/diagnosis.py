"""Why a TLS connection does not come about, in words that say what to do.

gRPC tells a client that a handshake failed, but not for which certificate, and a server that
refuses a client's certificate only closes the connection. So whoever could not connect asks here:
one or two handshakes of our own tell the rest.
"""

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509

from stagecoach.contract.address import Address
from stagecoach.contract.errors import (
    InvalidArgumentError,
    StagecoachError,
    UnauthenticatedError,
    UnavailableError,
)
from stagecoach.security.certificate import Certificate
from stagecoach.security.credentials import is_signed_by, read_authority
from stagecoach.security.handshake import tls_connection
from stagecoach.security.tls_files import TlsFiles

PROBE_TIMEOUT_S = 2.0

_SIGNS = ("handshake failed", "verification check", "socket closed", "endpoint closed", "goaway")
"""Words that gRPC uses when a connection fails for a reason that a handshake would explain."""


class Trust(NamedTuple):
    """What a client that uses TLS goes by."""

    authority: bytes | None = None
    """PEM of the authorities that it trusts. None: those of its system."""
    files: TlsFiles | None = None
    """The certificate that it shows, if any."""


def explained(error: StagecoachError, address: str, trust: Trust | None) -> StagecoachError:
    """Gives an error of a connection that did not come about its reason, if TLS is the reason.

    Blocks for some seconds when it may be, to try a handshake.

    Args:
        error: What the call ended with.
        address: HOST:PORT of the server.
        trust: What the client goes by. None: it speaks plain text.

    Returns:
        An UnauthenticatedError that says what to mend, or `error` itself.
    """
    if not isinstance(error, UnavailableError) or not _is_about_tls(error.message):
        return error
    reason = _reason(address, trust)
    if reason is None and "CERTIFICATE_VERIFY_FAILED" in error.message:
        reason = "its certificate is not signed by a CA that this side trusts"
    return error if reason is None else UnauthenticatedError(reason)


def _is_about_tls(message: str) -> bool:
    return any(sign in message.lower() for sign in _SIGNS)


def _reason(address: str, trust: Trust | None) -> str | None:
    """What is wrong between the two sides; None when it is not TLS."""
    with suppress(OSError, ValueError, InvalidArgumentError):  # gRPC has said whatever it is
        host, port = Address.parse(address, field="address")
        chain = _served_chain(host, port)
        if trust is None:
            return None if chain is None else "it speaks TLS, and this side plain text"
        if chain is None:
            return "it speaks plain text, and this side TLS"
        problem = _problem_of(chain, host, trust)
        return problem or _refusal(host, port, trust.files)
    return None


def _served_chain(host: str, port: int) -> list[x509.Certificate] | None:
    """The certificates that a server shows, unchecked; None when it does not speak TLS.

    Raises:
        OSError: It cannot be reached, or ends the handshake.
    """
    try:
        with _connected(host, port, None) as connection:
            der = connection.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        if error.reason in (
            "WRONG_VERSION_NUMBER",
            "RECORD_LAYER_FAILURE",
            "PACKET_LENGTH_TOO_LONG",
        ):
            return None
        raise
    return [] if der is None else [x509.load_der_x509_certificate(der)]


def _problem_of(chain: list[x509.Certificate], host: str, trust: Trust) -> str | None:
    """What a client must object to in the certificate of a server."""
    facts = Certificate.of(chain[0])
    problem = facts.problem_at(datetime.now(UTC))
    if problem is not None:
        return (
            f"its certificate ({facts.name}) {problem}; renew it with `coordinator-cli certs renew`"
        )
    if not facts.is_for(host):
        return (
            f"its certificate ({facts.name}) is for {', '.join(facts.hosts) or 'no host'}, not for "
            f"{host}; issue one with `--host {host}`"
        )
    authority = trust.authority
    if trust.files is not None and trust.files.authority is not None:
        authority = read_authority(trust.files.authority, f"{trust.files.prefix}_ca")
    if authority is not None and not is_signed_by(chain, authority):
        return f"its certificate ({facts.name}) is not signed by the CA that this side trusts"
    return None


def _refusal(host: str, port: int, files: TlsFiles | None) -> str | None:
    """What a server thinks of the certificate of this client; None when it likes it."""
    try:
        with _connected(host, port, files) as connection:
            if connection.recv(1):  # a client of TLS 1.3 learns of a refusal only when it reads
                return None
            said = "it ended the connection"
    except ssl.SSLError as error:
        said = (error.reason or "").lower().replace("_", " ")
    if files is None:
        return f"it wants a certificate of this side, which has none ({said})"
    return (
        f"it refused the certificate of this side, {files.certificate.name} ({said}): is that "
        "signed by the CA that the server trusts, and is the server's clock right?"
    )


def _connected(host: str, port: int, files: TlsFiles | None) -> ssl.SSLSocket:
    """A connection whose handshake is done; the server's certificate is not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent; this only looks
    context.set_alpn_protocols(["h2"])
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    return tls_connection(context, host, port, timeout_s=PROBE_TIMEOUT_S)
