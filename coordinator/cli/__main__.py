"""Entry point of `coordinator-cli`, also as `python -m coordinator.cli`."""

import io
import sys

from protos.grpc_environment import prepare_grpc

_EXIT_INTERRUPTED = 130  # as `failures` has it, which is not imported yet


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        _run()
    except KeyboardInterrupt:  # while modules are imported; commands end by themselves
        sys.exit(_EXIT_INTERRUPTED)


def _run() -> None:
    from coordinator.cli.app import app

    prepare_grpc()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    app(prog_name="coordinator-cli")


if __name__ == "__main__":
    main()
