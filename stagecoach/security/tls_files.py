"""Where the files of a TLS end lie, as the operator gave them. Nothing is read here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate, its private key, and the authority that peers are checked by."""

    certificate: Path
    """PEM; the certificates of intermediate authorities may follow."""
    key: Path
    authority: Path | None = None
    """CA of the peers that have to show a certificate. None: they show none."""
    prefix: str = "tls"
    """What the options' names begin with, for errors: tls_cert, tls_key and tls_ca."""

    @classmethod
    def mutual(cls, ca: Path | None, cert: Path | None, key: Path | None) -> Self | None:
        """What the flags --tls-ca, --tls-cert and --tls-key say; None when none is given.

        Raises:
            InvalidArgumentError: Only some are given.
        """
        if ca is None and cert is None and key is None:
            return None
        if ca is None or cert is None or key is None:
            raise InvalidArgumentError(
                "--tls-ca, --tls-cert and --tls-key belong together: give all three or none",
                field="tls_ca",
            )
        return cls(certificate=cert, key=key, authority=ca)

    @classmethod
    def of_server(cls, cert: Path | None, key: Path | None, *, prefix: str) -> Self | None:
        """What two flags of a server say whose clients show no certificate; None for none.

        Raises:
            InvalidArgumentError: Only one is given.
        """
        if cert is None and key is None:
            return None
        if cert is None or key is None:
            flag = prefix.replace("_", "-")
            raise InvalidArgumentError(
                f"--{flag}-cert and --{flag}-key belong together: give both or none",
                field=f"{prefix}_cert",
            )
        return cls(certificate=cert, key=key, prefix=prefix)
