"""Entry point of `coordinator-cli`, also as `python -m coordinator.cli`."""

import io
import sys

from coordinator.cli.app import app
from protos.grpc_environment import prepare_grpc


def main() -> None:
    """Runs the command line and exits with its code."""
    prepare_grpc()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    app(prog_name="coordinator-cli")


if __name__ == "__main__":
    main()
