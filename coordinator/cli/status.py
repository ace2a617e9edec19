"""`coordinator-cli status`: the state of the coordinator and of every stage."""

import asyncio
from typing import Annotated

import typer

from coordinator.cli.shared import flags
from coordinator.cli.shared.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.shared.failures import reported_failures
from stagecoach.contract.address import DEFAULT_ADDRESS


def status(
    coordinator: flags.CoordinatorAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again and again, until q or Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks; only with --watch.")
    ] = 1.0,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 10.0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch one a line.")
    ] = False,
) -> None:
    """Shows stages, layers, devices, KV use, throughput and health."""
    with reported_failures(status):
        from coordinator.cli.status_output import print_json, print_table

        connection = Connection.of(coordinator, tls_ca, api_key_file)
        if watch:
            from coordinator.cli.watch import output

            asyncio.run(output.watch(connection, interval_s=interval, json_output=json_output))
            return
        with connection.client() as client:
            answer = client.status(timeout_s=timeout_s)
        if json_output:
            print_json(answer)
        else:
            print_table(answer)
