"""What a certificate says, as plain data.

A node's role stands in its certificate as a SPIFFE id (https://spiffe.io),
`spiffe://stagecoach/ROLE/NAME`: a name that any tool can put into a certificate, that is signed
with it, and that gRPC hands to the server. Everything that the private authority signs can open a
TLS connection; the role says what it may do there.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.role import Role, role_of

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is read of a certificate: whose it is, what for, and until when."""

    name: str
    """Common name of the subject."""
    role: Role | None
    """Role of the node; None for an authority, and for one that was made elsewhere without a SPIFFE
    id of ours."""
    hosts: tuple[str, ...]
    """Names and addresses that it is valid for."""
    is_authority: bool
    not_before: datetime
    not_after: datetime
    """End of validity, in UTC like `not_before`."""
    sha256: str
    """Fingerprint, in hexadecimal."""

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Reads what a parsed certificate says."""
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        alternative = _extension(certificate, x509.SubjectAlternativeName)
        constraints = _extension(certificate, x509.BasicConstraints)
        return cls(
            name=str(names[0].value) if names else "",
            role=None if alternative is None else role_of(_uris(alternative)),
            hosts=() if alternative is None else _hosts(alternative),
            is_authority=constraints is not None and constraints.ca,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        )

    def is_for(self, host: str) -> bool:
        """True when it is valid for this name or address; a wildcard covers one label."""
        wanted = _plain(host)
        parent = wanted.partition(".")[2]
        for known in map(_plain, self.hosts):
            if known == wanted or (parent and known == f"*.{parent}"):
                return True
        return False

    def problem_at(self, now: datetime) -> str | None:
        """Says in a few words why it is not valid at a time, or None."""
        if now > self.not_after:
            return f"expired on {minute(self.not_after)}"
        if now < self.not_before:
            return f"is not valid before {minute(self.not_before)} (is the clock right?)"
        return None


def minute(moment: datetime) -> str:
    """A time for people, to the minute."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def parse_chain(pem: bytes, *, field: str, source: object) -> list[x509.Certificate]:
    """Reads PEM certificates, in the order of the file.

    Args:
        pem: The content.
        field: Name of the option, for errors.
        source: Where it is from, for errors.

    Raises:
        InvalidArgumentError: There is none, or one is damaged.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{field} {source} holds no certificate in PEM form", field=field
        ) from error


def parse_key(pem: bytes, *, field: str, source: object) -> PrivateKeyTypes:
    """Reads a private key without a passphrase.

    Raises:
        InvalidArgumentError: It is damaged, or locked with a passphrase.
    """
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgumentError(
            f"{field} {source} holds no private key in PEM form without a passphrase", field=field
        ) from error


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None  # as good as absent: nobody else could read it either


def _uris(alternative: x509.SubjectAlternativeName) -> list[str]:
    return alternative.get_values_for_type(x509.UniformResourceIdentifier)


def _hosts(alternative: x509.SubjectAlternativeName) -> tuple[str, ...]:
    names = alternative.get_values_for_type(x509.DNSName)
    return (*names, *map(str, alternative.get_values_for_type(x509.IPAddress)))


def _plain(host: str) -> str:
    """One spelling of a name or an address, so that two can be compared."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
