"""A model split over three stage servers on this machine answers one question.

Run by `make demo`, or as `python -m examples.demo`. Starts the cluster with `coordinator-cli up`,
streams an answer with the client SDK, shows where the time of a token went, stops everything.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from coordinator.cli.shared.completion_output import print_stats
from stagecoach import Client

QUESTION = "What is the capital of France?"

UP = (
    *("-m", "coordinator.cli", "up", "--model", "demo", "--stages", "3"),
    *("--grpc-port", "0", "--json", "--exit-with-parent"),
)


@contextmanager
def cluster() -> Iterator[str]:
    """Runs a cluster; yields the coordinator's address. Its progress goes to our stderr."""
    with subprocess.Popen(
        [sys.executable, *UP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        try:
            ready = up.stdout.readline()
            if not ready:
                sys.exit(up.wait())  # it has said why
            yield json.loads(ready)["grpc"]
        finally:
            up.terminate()


def main() -> None:
    """Asks the question."""
    console = Console(highlight=False)
    with cluster() as address, Client(address) as client:
        for stage in client.status().stages:
            console.print(f"stage {stage.index} at {stage.address} on {stage.device}")
        console.print(f"\n[bold]{QUESTION}[/bold]")
        chat = [{"role": "user", "content": QUESTION}]
        with client.generate(chat, max_tokens=64) as stream:
            for event in stream:
                print(event.text, end="", flush=True)
            completion = stream.result()
        print("\n")
        print_stats(completion)


if __name__ == "__main__":
    main()
