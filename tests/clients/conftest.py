"""The server that every client is pointed at, and the table that is printed at the end."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.client_table import clients

ROOT = Path(__file__).resolve().parents[2]
END_S = 60
OUTCOMES = {"passed": "works", "failed": "FAILS", "error": "FAILS", "skipped": "left out"}


class DemoServer(NamedTuple):
    """A coordinator of the demo model as a process of its own."""

    http: str
    """URL of its HTTP door."""
    grpc: str
    """Address of its gRPC door."""


@pytest.fixture(scope="session")
def demo() -> Iterator[DemoServer]:
    """`coordinator-cli up`, as anyone starts it, on ports that are free."""
    command = (sys.executable, "-m", "coordinator.cli", "up", "--model", "demo", "--stages", "2")
    with subprocess.Popen(
        [
            *command,
            "--grpc-port",
            "0",
            "--http-port",
            "0",
            "--threads",
            "1",
            "--kv-memory",
            "256MiB",
            "--json",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield DemoServer(f"http://{ready['http']}", ready["grpc"])
            process.terminate()
            assert process.wait(END_S) == 0
        finally:
            process.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints client by client what it did and what came of it."""
    outcomes = {
        dict(report.user_properties)["client"]: word
        for outcome, word in OUTCOMES.items()
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport) and report.user_properties
    }
    rows = [
        (client.name, client.version, client.does, outcomes[client.name])
        for client in clients()
        if client.name in outcomes
    ]
    if not rows:
        return
    rows.insert(0, ("client", "version", "does", "result"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    terminalreporter.section("clients")
    for *cells, outcome in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        terminalreporter.line(f"{'  '.join(padded)}  {outcome}")
