"""`coordinator-cli health`: does a server serve? For health checks of containers."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.shared.connection import (
    COORDINATOR,
    COORDINATOR_CA,
    check_address,
    tls_setting,
)
from coordinator.cli.shared.failures import reported_failures
from stagecoach.contract.address import DEFAULT_ADDRESS


def health(
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT",
            envvar=COORDINATOR,
            help="Of a stage server or a coordinator. Default: the coordinator that the other"
            f" commands find, whose CA is in {COORDINATOR_CA}.",
        ),
    ] = DEFAULT_ADDRESS,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="STAGECOACH_TLS_CA",
            help="CA of the server; alone for one that asks for no certificate.",
        ),
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
    with reported_failures(health):
        from coordinator.cli.health_check import check_health
        from stagecoach.security.tls_files import TlsFiles

        ca = _coordinator_ca(address) if tls_ca is None else tls_ca
        shown = None
        if tls_cert is not None or tls_key is not None:
            shown = TlsFiles.mutual(tls_ca, tls_cert, tls_key)
        check_health(
            check_address(address, field="address"),
            tls=ca if shown is None else shown,
            server_name=tls_server_name,
            timeout_s=timeout_s,
        )
        print(json.dumps({"address": address, "serving": True}) if json_output else "serving")


def _coordinator_ca(address: str) -> bool | Path:
    """What the environment says of the coordinator's CA, if it is the coordinator that is asked."""
    if address != (os.environ.get(COORDINATOR) or DEFAULT_ADDRESS):
        return False
    return tls_setting(os.environ.get(COORDINATOR_CA) or None)
