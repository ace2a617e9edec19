"""The certificate that a server shows to a client of the cluster, and the role in it.

gRPC's client checks the chain and the host of a server, and cannot be asked for more. So a
handshake of our own reads the certificate first; the channel that follows then takes no other one.
"""

import ssl
import time
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from stagecoach.contract.address import Address
from stagecoach.contract.errors import DeadlineExceededError, UnavailableError
from stagecoach.security.certificate import Certificate
from stagecoach.security.handshake import tls_connection
from stagecoach.security.peer import wrong_role
from stagecoach.security.role import Role
from stagecoach.security.tls_files import TlsFiles


class Served(NamedTuple):
    """What a server showed."""

    certificate: bytes
    """PEM."""
    took_s: float
    """Until the handshake was done: at least one round trip."""


def certificate_of_role(address: str, files: TlsFiles, role: Role, *, timeout_s: float) -> Served:
    """Reads the certificate of a server; blocks.

    The authority has signed it and it is valid now; whether it is for this host is left to gRPC.

    Args:
        address: HOST:PORT of the server.
        files: What this side shows, and whom it trusts.
        role: What the server has to be.
        timeout_s: Time limit of the connection and of each part of the handshake.

    Raises:
        UnauthenticatedError: It has another role; names both.
        UnavailableError: The server cannot be reached, or the handshake fails.
        DeadlineExceededError: The server did not answer in time.
    """
    started_s = time.monotonic()
    host, port = Address.parse(address, field="stage")
    try:
        with tls_connection(_context(files), host, port, timeout_s=timeout_s) as connection:
            took_s = time.monotonic() - started_s
            der = connection.getpeercert(binary_form=True)
    except TimeoutError as error:
        raise DeadlineExceededError(f"no TLS handshake in {timeout_s:g} s") from error
    except ssl.SSLError as error:
        raise UnavailableError(f"TLS handshake failed: {error}") from error
    except OSError as error:
        raise UnavailableError(f"cannot be reached: {error.strerror or error}") from error
    assert der is not None  # verified above
    certificate = x509.load_der_x509_certificate(der)
    facts = Certificate.of(certificate)
    if facts.role is not role:
        raise wrong_role(facts.name, found=facts.role, needed=role)
    return Served(certificate.public_bytes(Encoding.PEM), took_s)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(files.certificate, files.key)
    if files.authority is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(files.authority)
    return context
