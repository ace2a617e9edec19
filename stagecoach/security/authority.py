"""A private certificate authority: makes itself, and certificates for the nodes of one cluster.

Keys are on the curve P-256, which every TLS library knows and which signs in microseconds. Pure:
files are the business of `certificate_folder`.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.certificate import Certificate, parse_chain, parse_key
from stagecoach.security.role import Role, spiffe_id

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
MAX_DAYS = 36500

_CLOCK_SKEW = timedelta(hours=1)
"""How far another box's clock may be behind and still accept a new certificate."""


class PemPair(NamedTuple):
    """A certificate and its private key, both in PEM form."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority of one cluster."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, *, now: datetime, days: int = AUTHORITY_DAYS) -> Self:
        """Makes a new one.

        Args:
            now: The time, with its zone.
            days: How long its certificate is valid.

        Raises:
            InvalidArgumentError: `days` is out of range.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Stagecoach private CA")
        builder = (
            _builder(name, name, key.public_key(), now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def parse(cls, pair: PemPair) -> Self:
        """Reads one that `pem` wrote.

        Raises:
            InvalidArgumentError: It is damaged, is no authority, or the key is another one's.
        """
        certificate = parse_chain(pair.certificate, field="ca", source="ca.pem")[0]
        key = parse_key(pair.key, field="ca", source="ca.key")
        if not Certificate.of(certificate).is_authority:
            raise InvalidArgumentError("ca.pem is not a certificate authority", field="ca")
        if certificate.public_key() != key.public_key():
            raise InvalidArgumentError("ca.key is not the key of ca.pem", field="ca")
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidArgumentError("ca.key is not an elliptic curve key", field="ca")
        return cls(certificate, key)

    def pem(self) -> PemPair:
        """What `parse` reads."""
        return _pem(self.certificate, self.key)

    def issue(
        self, name: str, *, role: Role, hosts: Sequence[str], now: datetime, days: int = NODE_DAYS
    ) -> PemPair:
        """Makes the certificate of one node, good for servers and for clients.

        Args:
            name: Name of the node: letters, digits, dots and hyphens.
            role: What it may do.
            hosts: Names and addresses under which others reach it.
            now: The time, with its zone.
            days: How long it is valid; never longer than the authority itself.

        Raises:
            InvalidArgumentError: A value is out of range, or the authority is not valid now.
        """
        problem = Certificate.of(self.certificate).problem_at(now)
        if problem is not None:
            raise InvalidArgumentError(f"the authority {problem}", field="ca")
        if re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", name) is None:
            raise InvalidArgumentError(
                f"name {name[:80]!r} is not 1 to 64 letters, digits, dots and hyphens",
                field="name",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        identity = x509.UniformResourceIdentifier(spiffe_id(role, name))
        end = self.certificate.not_valid_after_utc
        builder = (
            _builder(_name(name), self.certificate.subject, key.public_key(), now, days, end=end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([*map(_general_name, hosts), identity]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        return _pem(builder.sign(self.key, hashes.SHA256()), key)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    label = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if len(host) > 253 or re.fullmatch(rf"(?:\*\.)?{label}(?:\.{label})*", host) is None:
        raise InvalidArgumentError(
            f"host {host[:80]!r} is neither a host name nor an IP address", field="host"
        )
    return x509.DNSName(host.lower())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    *,
    end: datetime | None = None,
) -> x509.CertificateBuilder:
    if not 1 <= days <= MAX_DAYS:
        raise InvalidArgumentError(f"days is {days}, must be in [1, {MAX_DAYS}]", field="days")
    not_after = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(not_after if end is None else min(not_after, end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> PemPair:
    return PemPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
