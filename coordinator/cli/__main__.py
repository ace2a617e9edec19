"""Entry point of `coordinator-cli`, also as `python -m coordinator.cli`."""

import io
import os
import sys

from coordinator.cli.app import app


def main() -> None:
    """Runs the command line and exits with its code."""
    # Its errors reach us as exceptions; what it logs besides is not for the reader of a command.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    app(prog_name="coordinator-cli")


if __name__ == "__main__":
    main()
