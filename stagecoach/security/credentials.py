"""From PEM files to what gRPC listens and connects with.

Certificates are renewed while everything runs: a server looks at its files when a connection
begins, and a link reads them each time it connects.
"""

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.certificate import Certificate, minute, parse_chain, parse_key
from stagecoach.security.peer import wrong_role
from stagecoach.security.private_file import read_private, read_public
from stagecoach.security.role import Role
from stagecoach.security.tls_files import TlsFiles

WARN_DAYS = 30
"""A certificate that is valid for fewer days than this is warned of when it is loaded."""

_log = logging.getLogger(__name__)


class TlsMaterial(NamedTuple):
    """What lies in the files, checked."""

    certificate: bytes
    """PEM, with the chain behind it."""
    key: bytes
    authority: bytes | None
    leaf: Certificate

    def __repr__(self) -> str:
        """Without the key."""
        return f"TlsMaterial({self.leaf!r})"


def read_tls(files: TlsFiles) -> TlsMaterial:
    """Reads and checks the files.

    Raises:
        InvalidArgumentError: One cannot be read, the key is not the certificate's or can be read
            by others, the certificate is not valid now, or the authority has not signed it.
    """
    cert_field, key_field, ca_field = (f"{files.prefix}_{word}" for word in ("cert", "key", "ca"))
    pem = read_public(files.certificate, field=cert_field)
    chain = parse_chain(pem, field=cert_field, source=files.certificate)
    key_pem = read_private(files.key, field=key_field)
    key = parse_key(key_pem, field=key_field, source=files.key)
    if key.public_key() != chain[0].public_key():
        raise InvalidArgumentError(
            f"{key_field} {files.key} is not the key of {files.certificate}", field=key_field
        )
    leaf = Certificate.of(chain[0])
    problem = leaf.problem_at(datetime.now(UTC))
    if problem is not None:
        raise InvalidArgumentError(
            f"{cert_field} {files.certificate} {problem}; renew it with "
            "`coordinator-cli certs renew`",
            field=cert_field,
        )
    authority = None if files.authority is None else read_authority(files.authority, ca_field)
    if authority is not None and not is_signed_by(chain, authority):
        raise InvalidArgumentError(
            f"{cert_field} {files.certificate} is not signed by {ca_field} {files.authority}",
            field=cert_field,
            other_field=ca_field,
        )
    return TlsMaterial(pem, key_pem, authority, leaf)


def require_own_role(files: TlsFiles, role: Role) -> None:
    """Refuses to start with a certificate that its peers will not take.

    Raises:
        InvalidArgumentError: As `read_tls`.
        UnauthenticatedError: The certificate has another role; names both.
    """
    leaf = read_tls(files).leaf
    if leaf.role is not role:
        raise wrong_role(leaf.name, found=leaf.role, needed=role)


def channel_credentials(files: TlsFiles, *, served: bytes | None = None) -> grpc.ChannelCredentials:
    """What a client that shows this certificate connects with.

    Args:
        files: The client's.
        served: The only certificate that the server may show, as PEM. None: any of the authority.

    Raises:
        InvalidArgumentError: As `read_tls`.
    """
    material = read_tls(files)
    trusted = material.authority if served is None else served
    return grpc.ssl_channel_credentials(trusted, material.key, material.certificate)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a gRPC server listens with; takes renewed files without a restart.

    Clients have to show a certificate of the authority, if there is one.

    Raises:
        InvalidArgumentError: As `read_tls`.
    """
    source = RenewedFiles(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """What the connection that begins now is served with; None for no change."""
        material = source.renewed()
        return None if material is None else _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(source.material),
        fetch,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=files.authority is not None,
    )


class RenewedFiles:
    """Notices that TLS files were replaced; any thread may ask.

    Args:
        files: The files.

    Raises:
        InvalidArgumentError: As `read_tls`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamp = self._look()
        self.material = read_tls(files)
        _announce(self.material.leaf)

    def renewed(self) -> TlsMaterial | None:
        """What lies in the files since the last question, if that is new and good.

        Files that are damaged or half replaced are not taken; the log says why.
        """
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                self.material = read_tls(self._files)
            except InvalidArgumentError as error:
                _log.error("new TLS files are not taken: %s", error.message)
                return None
            _announce(self.material.leaf)
            return self.material

    def _look(self) -> list[tuple[int, int, int] | None]:
        files = self._files
        paths = (files.certificate, files.key, files.authority)
        return [None if path is None else _stamp(path) for path in paths]


def read_authority(path: Path, field: str) -> bytes:
    """Reads the certificates of authorities.

    Raises:
        InvalidArgumentError: The file cannot be read or holds none.
    """
    pem = read_public(path, field=field)
    parse_chain(pem, field=field, source=path)
    return pem


def is_signed_by(chain: Sequence[x509.Certificate], authority: bytes) -> bool:
    """True when one of the authorities has signed one of the certificates.

    Only good for telling people what is wrong: trust is decided by the TLS handshake.
    """
    authorities = x509.load_pem_x509_certificates(authority)
    return any(_issued(signer, signed) for signer in authorities for signed in chain)


def _issued(signer: x509.Certificate, signed: x509.Certificate) -> bool:
    try:
        signed.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, material.authority)


def _announce(leaf: Certificate) -> None:
    """Says in the log what a server shows from now on, louder when that will soon be over."""
    num_days = (leaf.not_after - datetime.now(UTC)).days
    level = logging.INFO if num_days >= WARN_DAYS else logging.WARNING
    _log.log(
        level,
        "TLS: certificate of %s is valid until %s, %d days",
        leaf.name,
        minute(leaf.not_after),
        num_days,
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when a file is written or replaced; None while it is away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
