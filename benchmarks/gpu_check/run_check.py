"""Runs one check, in this process: `python -m benchmarks.gpu_check.run_check NAME ...`.

For `benchmarks.gpu_check.runner`. Facts and figures go to a file, logs and tracebacks to stderr.
"""

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from benchmarks.gpu_check.checks import CHECKS, CPU
from benchmarks.gpu_check.messages import End, Failure, Names, write_message
from benchmarks.gpu_check.report import Figure
from stage_server.compute.cuda_environment import prepare_cuda
from stagecoach.contract.errors import StagecoachError
from stagecoach.telemetry.log_config import LogConfig
from stagecoach.telemetry.logs import set_up_logging

if TYPE_CHECKING:
    from benchmarks.gpu_check.subject import CheckModule

_MAX_SIDE = 200
"""Characters of a long error's beginning, and of its end, that the report shows."""


def main() -> None:
    """Runs the check; exits with 1 when it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[check.name for check in CHECKS])
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--messages", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    set_up_logging(LogConfig())
    # Both before torch is imported, the first as a stage does.
    prepare_cuda(os.environ)
    if options.device == CPU:
        os.environ["TRITON_INTERPRET"] = "1"
    with options.messages.open("w") as file:
        try:
            _run(options, file)
        except (Exception, SystemExit) as error:  # the report names it, the log has it whole
            traceback.print_exc()
            write_message(file, Failure(_reason(error)))
            sys.exit(1)
        write_message(file, End())


def _run(options: argparse.Namespace, file: TextIO) -> None:
    from benchmarks.gpu_check.subject import Subject
    from stage_server.compute.devices import take_device

    module: CheckModule = importlib.import_module(f"benchmarks.gpu_check.{options.name}")
    subject = Subject(
        chosen=take_device(options.device), folder=options.folder, is_quick=options.quick
    )
    names = tuple(module.names(subject))
    assert len(set(names)) == len(names), "a name stands for one row"
    write_message(file, Names(names))
    for found in module.figures(subject):
        assert not isinstance(found, Figure) or found.name in names, f"{found.name} was not named"
        write_message(file, found)


def _reason(error: BaseException) -> str:
    """What the error says, in a line: its beginning and its end, where it is long."""
    text = " ".join(str(error).split())
    if not isinstance(error, StagecoachError):
        text = f"{type(error).__name__}: {text}"
    if len(text) > 2 * _MAX_SIDE:
        text = f"{text[:_MAX_SIDE]} ... {text[-_MAX_SIDE:]}"
    return text


if __name__ == "__main__":
    main()
