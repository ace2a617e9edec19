"""`coordinator-cli status`: the state of the coordinator and of every stage."""

from typing import Annotated

import typer

from coordinator.cli import flags
from coordinator.cli.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.failures import reported_failures


def status(
    coordinator: flags.CoordinatorAddress = flags.DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 10.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Shows stages, layers, devices, KV use, throughput and health."""
    from coordinator.cli.status_output import print_json, print_table

    with reported_failures():
        with Connection.of(coordinator, tls_ca, api_key_file).client() as client:
            answer = client.status(timeout_s=timeout_s)
        if json_output:
            print_json(answer)
        else:
            print_table(answer)
