"""What an HTTPS server listens with, from the same files as gRPC's."""

import logging
import ssl

from stagecoach.security.credentials import RenewedFiles
from stagecoach.security.tls_files import TlsFiles

_log = logging.getLogger(__name__)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Makes the TLS context of a server; it takes renewed files without a restart.

    Raises:
        InvalidArgumentError: As `credentials.read_tls`.
    """
    source = RenewedFiles(files)
    context = _context(files)

    def renew(connection: ssl.SSLObject, _name: str | None, _context_now: ssl.SSLContext) -> None:
        """Runs at the beginning of each handshake."""
        nonlocal context
        if source.renewed() is not None:
            try:
                context = _context(files)
            except OSError as error:  # replaced once more, between the two looks
                _log.error("new TLS files are not taken: %s", error)
        connection.context = context

    listening = context
    listening.sni_callback = renew
    return listening


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certificate, files.key)
    return context
