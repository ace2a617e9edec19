"""Entry point of `stage-server`, also as `python -m stage_server`."""

import sys

from stagecoach.contract.unexpected import in_words


def main() -> None:
    """Runs the command and exits with its code."""
    try:
        from stage_server.process.command import run_command
    except ModuleNotFoundError as error:  # the client alone is installed
        sys.exit(f"stage-server: {in_words(error)}")
    run_command()


if __name__ == "__main__":
    main()
