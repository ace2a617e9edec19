"""Runs checks as processes of their own, one after another, until a deadline."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu_check.checks import CPU, DEVICE, DEVICE_FACT, Check
from benchmarks.gpu_check.messages import End, Fact, Failure, Names, read_messages
from benchmarks.gpu_check.report import CheckReport, Figure, Outcome, Report, judge, not_started
from stagecoach.process.stop_signals import stop_signals

_HINT = "; run it again, as kernels that it has compiled are kept"
_ENV = {"TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What is to be run."""

    checks: tuple[Check, ...]
    """The first is that of the device."""
    device: str
    """`cpu`, `cuda` or `cuda:N`."""
    is_quick: bool
    is_whole: bool
    """See `Report`."""
    logs: Path
    """Folder; each check's log is written there, under its name."""
    deadline_s: float
    """For all checks."""


def run_checks(plan: RunPlan, say: Callable[[str], None]) -> Report:
    """Runs every check that the deadline leaves time for.

    Args:
        plan: What is to be run.
        say: Told in a line what begins.

    Raises:
        OSError: A log cannot be written.
    """
    end_s = time.monotonic() + plan.deadline_s
    facts: dict[str, str] = {}
    reports: list[CheckReport] = []
    refusal = ""
    is_card = True
    for check in plan.checks:
        left_s = end_s - time.monotonic()
        if refusal or left_s <= 0:
            why = refusal or f"the {plan.deadline_s:g} s for all checks were over"
            reports.append(not_started(check.name, why))
            continue
        say(check.name)
        outcome = run_check(check, plan, max_elapsed_s=min(check.max_elapsed_s, left_s))
        facts |= outcome.facts
        if check is DEVICE:
            is_card = outcome.facts.get(DEVICE_FACT) != CPU
            refusal = "" if DEVICE_FACT in outcome.facts else "the device cannot be taken"
        rows = judge(outcome, is_card=is_card)
        reports.append(CheckReport(check=check.name, rows=rows, elapsed_s=outcome.elapsed_s))
    return Report(facts=facts, checks=tuple(reports), is_whole=plan.is_whole)


def run_check(check: Check, plan: RunPlan, *, max_elapsed_s: float) -> Outcome:
    """Runs one check, and ends it with all that it has started when it takes too long.

    Args:
        check: Which.
        plan: Its device, and where its log goes.
        max_elapsed_s: Seconds that it gets.
    """
    started_s = time.monotonic()
    log = plan.logs / f"{check.name}.log"
    with TemporaryDirectory(prefix="stagecoach-gpu-check-") as name:
        messages, folder = Path(name) / "messages", Path(name) / "files"
        folder.mkdir()
        messages.touch()
        command = [sys.executable, "-m", "benchmarks.gpu_check.run_check", check.name]
        command += ["--device", plan.device, "--folder", str(folder), "--messages", str(messages)]
        command += ["--quick"] if plan.is_quick else []
        ending = _run(command, log, max_elapsed_s)
        elapsed_s = time.monotonic() - started_s
        return _outcome(messages, ending, elapsed_s, log)


def _run(command: Sequence[str], log: Path, max_elapsed_s: float) -> str:
    """Runs a command in a process group of its own; says how it ended, if not by itself."""
    process: subprocess.Popen[bytes] | None = None
    with log.open("w") as output:
        try:
            with _signals_put_off():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **_ENV},
                    start_new_session=True,
                )
            code = process.wait(max_elapsed_s)
        except subprocess.TimeoutExpired:
            return f"ended after {max_elapsed_s:.0f} s, which it may take at most{_HINT}"
        finally:
            if process is not None:
                _kill_group(process.pid)
                process.wait()
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


@contextmanager
def _signals_put_off() -> Iterator[None]:
    """Handles signals at the end: in the middle of a start they leave a process nobody knows of."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in stop_signals()
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _kill_group(group: int) -> None:
    """Kills what is left of a process group: nothing, when all went well."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _outcome(messages: Path, ending: str, elapsed_s: float, log: Path) -> Outcome:
    facts: dict[str, str] = {}
    names: tuple[str, ...] | None = None
    figures: list[Figure] = []
    failure: str | None = None
    for message in read_messages(messages):
        match message:
            case Names():
                names = message.names
            case Fact():
                facts[message.name] = message.text
            case Figure():
                figures.append(message)
            case Failure():
                failure = message.reason
            case End():
                failure = ""
    if failure is None:
        failure = ending
    if failure:
        failure = f"{failure} ({log.name})"
    return Outcome(facts, names, figures, failure, elapsed_s)
