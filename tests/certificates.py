"""Real certificates for the tests, of every kind that a peer may show."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

from stagecoach.security.certificate_folder import CertificateFolder
from stagecoach.security.role import SPIFFE_PREFIX, Role
from stagecoach.security.tls_files import TlsFiles

HOSTS = ("127.0.0.1", "localhost")


class Certificates:
    """The private CA of a cluster, and that of somebody else.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ours"
        self._ours = CertificateFolder(self.folder)
        self._theirs = CertificateFolder(folder / "theirs")
        long_ago = datetime.now(UTC) - timedelta(days=300)
        for authority in (self._ours, self._theirs):
            authority.init(now=long_ago)
        self.coordinator = self.issue("coordinator", Role.COORDINATOR)
        self.stage = self.issue("box1", Role.STAGE)
        self.elsewhere = self.issue("box9", Role.STAGE, hosts=("box9", "10.9.9.9"))
        self.expired_stage = self.issue("old-box", Role.STAGE, expired=True)
        self.expired_coordinator = self.issue("old-coordinator", Role.COORDINATOR, expired=True)
        self.foreign_stage = self.issue("their-box", Role.STAGE, foreign=True)
        self.foreign_coordinator = self.issue("their-coordinator", Role.COORDINATOR, foreign=True)
        with patch("stagecoach.security.authority.spiffe_id", lambda _, name: f"urn:box:{name}"):
            self.without_role = self.issue("bare", Role.STAGE)
        with patch(
            "stagecoach.security.authority.spiffe_id",
            lambda _, name: f"{SPIFFE_PREFIX}STAGE/{name}",
        ):
            self.misspelt = self.issue("misspelt", Role.STAGE)
        self.authority = self.folder / "ca.pem"
        self.foreign_authority = folder / "theirs" / "ca.pem"
        self.all_authorities = folder / "all.pem"
        self.all_authorities.write_bytes(
            self.authority.read_bytes() + self.foreign_authority.read_bytes()
        )

    def issue(
        self,
        name: str,
        role: Role,
        *,
        hosts: tuple[str, ...] = HOSTS,
        expired: bool = False,
        foreign: bool = False,
    ) -> TlsFiles:
        """Makes or replaces the certificate of one node."""
        folder = self._theirs if foreign else self._ours
        now = datetime.now(UTC) - timedelta(days=200 if expired else 0)
        made = folder.issue(name, role=role, hosts=hosts, now=now, days=100, overwrite=True)
        return TlsFiles(
            certificate=made.path,
            key=made.path.with_suffix(".key"),
            authority=made.path.with_name("ca.pem"),
        )


def as_server(files: TlsFiles) -> TlsFiles:
    """The same for a server whose clients show no certificate."""
    return TlsFiles(certificate=files.certificate, key=files.key, prefix="door_tls")
