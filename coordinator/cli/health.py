"""`coordinator-cli health`: does a server serve? For health checks of containers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.failures import reported_failures


def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Of a stage server or a coordinator.")
    ],
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="STAGECOACH_TLS_CA", help="CA of the server."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="STAGECOACH_TLS_CERT", help="Certificate shown to the server."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="STAGECOACH_TLS_KEY", help="Key of --tls-cert."),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name in the server's certificate. Default: the host of HOST:PORT."
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Asks a server whether it serves; exit code 0 when it does, 1 when not."""
    with reported_failures():
        from coordinator.client.health import check_health
        from security.tls_files import TlsFiles

        check_health(
            address,
            tls=TlsFiles.mutual(tls_ca, tls_cert, tls_key),
            server_name=tls_server_name,
            timeout_s=timeout_s,
        )
        print(json.dumps({"address": address, "serving": True}) if json_output else "serving")
