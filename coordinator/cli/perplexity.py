"""`coordinator-cli perplexity`: how well the served model expects a text."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.shared import flags
from coordinator.cli.shared.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.text_file import decode_text, read_file
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.errors import InvalidArgumentError


def perplexity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text in UTF-8; '-': from stdin.")],
    model: flags.ModelName = None,
    coordinator: flags.CoordinatorAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens that the model sees at once. Default: 2048, or what it takes."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens from window to window. Default: half of the context."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Read only so many tokens. Default: all.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="Windows that are computed at once.")
    ] = 4,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prints the perplexity of FILE, its standard error, and bits per byte.

    The text is read in windows that overlap. Each token is counted once, in the first window that
    holds it: so it is expected from at least CONTEXT - STRIDE tokens, but for those of the first
    window. A begin token that the model wants stands before each window. The standard error takes
    tokens for independent of each other.
    """
    with reported_failures(perplexity):
        is_piped = file == Path("-")
        source = "stdin" if is_piped else f"file {file}"
        data = sys.stdin.buffer.read() if is_piped else read_file(file, "file")
        text = decode_text(data, source, "file")
        if not text:
            raise InvalidArgumentError(f"{source} is empty", field="file")

        from coordinator.perplexity.measure import PerplexityPlan, measure
        from coordinator.perplexity.report import print_json, print_lines

        plan = PerplexityPlan(
            model=model, context=context, stride=stride, limit=limit, concurrency=concurrency
        )
        connection = Connection.of(coordinator, tls_ca, api_key_file)
        measured = asyncio.run(measure(connection.async_client, text, plan, _report))
        if json_output:
            print_json(measured)
        else:
            print_lines(measured)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
