"""Entry point of `coordinator-cli`, also as `python -m coordinator.cli`."""

import io
import sys

from stagecoach.contract.unexpected import in_words
from stagecoach.process.grpc_environment import prepare_grpc
from stagecoach.process.standard_streams import open_missing_streams, written_output

_EXIT_INTERRUPTED = 130  # as `failures` has it, which is not imported yet


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        _run()
    except ModuleNotFoundError as error:  # the client alone, or a stage alone, is installed
        sys.exit(f"coordinator-cli: {in_words(error)}")
    except KeyboardInterrupt:  # while modules are imported; commands end by themselves
        sys.exit(_EXIT_INTERRUPTED)


def _run() -> None:
    open_missing_streams()

    import typer

    from coordinator.cli.app import app
    from coordinator.cli.shared.failures import reported_failures

    prepare_grpc()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        with reported_failures(), written_output():
            app(prog_name="coordinator-cli")
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
