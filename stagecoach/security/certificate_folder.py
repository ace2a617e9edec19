"""The folder of one cluster's certificates: `ca.pem`, and NAME.pem with NAME.key for each node.

`ca.key` makes new nodes: it stays in this folder and goes to no box.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.authority import AUTHORITY_DAYS, NODE_DAYS, Authority, PemPair
from stagecoach.security.certificate import Certificate, parse_chain
from stagecoach.security.private_file import read_private, read_public, write_private, write_public
from stagecoach.security.role import Role

AUTHORITY_NAME = "ca"


class StoredCertificate(NamedTuple):
    """A certificate and where it lies."""

    path: Path
    certificate: Certificate


class CertificateFolder:
    """Makes, renews and lists the certificates of a folder.

    Files are readable by their owner alone, appear whole, and are replaced only when told.

    Args:
        path: The folder; made when needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def init(
        self, *, now: datetime, days: int = AUTHORITY_DAYS, overwrite: bool = False
    ) -> StoredCertificate:
        """Makes the authority.

        Raises:
            InvalidArgumentError: There is one already, or the folder cannot be written.
        """
        authority = Authority.create(now=now, days=days)
        return self._store(AUTHORITY_NAME, authority.pem(), overwrite=overwrite)

    def issue(
        self,
        name: str,
        *,
        role: Role,
        hosts: Sequence[str],
        now: datetime,
        days: int = NODE_DAYS,
        overwrite: bool = False,
    ) -> StoredCertificate:
        """Makes the certificate of a node.

        Raises:
            InvalidArgumentError: There is no authority, a value is out of range, or the node has a
                certificate already.
        """
        if name == AUTHORITY_NAME:
            raise InvalidArgumentError(f"name {name} is the authority's", field="name")
        pair = self._authority().issue(name, role=role, hosts=hosts, now=now, days=days)
        return self._store(name, pair, overwrite=overwrite)

    def renew(self, name: str, *, now: datetime, days: int = NODE_DAYS) -> StoredCertificate:
        """Replaces the certificate and the key of a node; name, role and hosts stay.

        Raises:
            InvalidArgumentError: There is no such node, or it was made elsewhere.
        """
        if not self._file(name).exists():
            raise InvalidArgumentError(
                f"name {name[:80]!r} has no certificate in {self._path}", field="name"
            )
        old = self._read(self._file(name))
        if old.role is None:
            raise InvalidArgumentError(
                f"{self._file(name)} is not the certificate of a node", field="name"
            )
        return self.issue(name, role=old.role, hosts=old.hosts, now=now, days=days, overwrite=True)

    def certificates(self) -> list[StoredCertificate]:
        """All certificates of the folder; the authority comes first.

        Raises:
            InvalidArgumentError: There is no authority, or a file is damaged.
        """
        nodes = sorted(set(self._path.glob("*.pem")) - {self._file(AUTHORITY_NAME)})
        paths = [self._file(AUTHORITY_NAME), *nodes]
        return [StoredCertificate(path, self._read(path)) for path in paths]

    def _authority(self) -> Authority:
        path = self._file(AUTHORITY_NAME)
        if not path.exists():
            raise InvalidArgumentError(
                f"there is no authority in {self._path}; make it with "
                f"`coordinator-cli certs init {self._path}`",
                field="ca",
            )
        key = read_private(path.with_suffix(".key"), field="ca")
        return Authority.parse(PemPair(read_public(path, field="ca"), key))

    def _store(self, name: str, pair: PemPair, *, overwrite: bool) -> StoredCertificate:
        path = self._file(name)
        # A key that lacks its certificate is of no use to anyone; the other way round it misleads.
        write_private(path.with_suffix(".key"), pair.key, overwrite=overwrite)
        write_public(path, pair.certificate, overwrite=overwrite)
        return StoredCertificate(path, self._read(path))

    def _read(self, path: Path) -> Certificate:
        pem = read_public(path, field="certificate")
        return Certificate.of(parse_chain(pem, field="certificate", source=path)[0])

    def _file(self, name: str) -> Path:
        return self._path / f"{name}.pem"
