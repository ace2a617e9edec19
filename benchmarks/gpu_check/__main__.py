"""Checks a card: `make gpu-check`, or `python -m benchmarks.gpu_check`.

Writes `report.md`, `report.json` and the log of each check into a folder, and prints the page.
Exits with 0 only when every row passes.
"""

import argparse
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.gpu_check.checks import CHECKS, DEADLINE_S, chosen_checks
from benchmarks.gpu_check.page import as_json, as_page
from benchmarks.gpu_check.runner import RunPlan, run_checks
from benchmarks.report import machine
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.contract.unexpected import in_words
from stagecoach.process.stop_signals import stop_signals
from stagecoach.version import __version__

_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Runs the checks."""
    options = _parse_options()
    for number in stop_signals():
        signal.signal(number, _end)
    try:
        sys.exit(0 if _check(options) else 1)
    except (StagecoachError, OSError) as error:
        message = error.message if isinstance(error, StagecoachError) else in_words(error)
        sys.exit(f"gpu-check: {message}")


def _end(number: int, _: FrameType | None) -> NoReturn:
    """Ends this process, and on the way what it has started."""
    sys.exit(f"gpu-check: ended by {signal.Signals(number).name}")


def _check(options: argparse.Namespace) -> bool:
    """Runs the checks and writes the report; whether all is well."""
    checks = chosen_checks(options.only)
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", options.device) is None:
        raise InvalidArgumentError(
            f"device {options.device!r} is not one of cuda, cuda:N, cpu", field="device"
        )
    if not options.deadline_s > 0:  # also refuses NaN
        raise InvalidArgumentError(
            f"deadline-s is {options.deadline_s:g}, must be above 0", field="deadline_s"
        )
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    plan = RunPlan(
        checks=checks,
        device=options.device,
        is_quick=options.quick,
        is_whole=checks == CHECKS and not options.quick,
        logs=output,
        deadline_s=options.deadline_s,
    )
    report = run_checks(plan, lambda line: print(f"{line} ...", file=sys.stderr, flush=True))
    report = replace(report, facts={**report.facts, **_facts()})
    page = as_page(report)
    (output / "report.md").write_text(page)
    (output / "report.json").write_text(as_json(report))
    print(page)
    print(f"report.md, report.json and logs: {output}", file=sys.stderr)
    return report.has_passed


def _facts() -> dict[str, str]:
    """Of this program and this machine."""
    return {
        "stagecoach": f"{__version__}, commit {_commit()}",
        "host": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commit() -> str:
    """Of the clone; says so where files differ from it, or where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({in_words(error)})"
    return done.stdout.strip()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        default="cuda",
        help="cuda, cuda:N, or cpu to try the program",
    )
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"))
    names = ", ".join(check.name for check in CHECKS)
    parser.add_argument("--only", metavar="NAME,...", help=f"some checks of {names}")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="for all checks")
    parser.add_argument(
        "--quick", action="store_true", help="few and tiny models, to try the program itself"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
