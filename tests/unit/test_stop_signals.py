"""A server that is told to stop finishes its work, however often its terminal closes."""

import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Prints what each signal does to it, and ends well when it is told to by its stdin.
SERVER = """
import asyncio, signal, sys
from stagecoach.process.stop_signals import stop_on_signals, stop_signals

async def main():
    stop = asyncio.Event()
    if "nohup" in sys.argv:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_on_signals(stop)
    print([number.name for number in stop_signals()], flush=True)
    for number in sys.argv[1].split(","):
        signal.raise_signal(int(number))
        await asyncio.sleep(0.01)
        print(stop.is_set(), flush=True)

asyncio.run(main())
"""


def served(*numbers: signal.Signals, nohup: bool = False) -> tuple[list[str], int]:
    """What a server printed that got these signals, and how it ended."""
    told = ",".join(str(int(number)) for number in numbers)
    done = subprocess.run(
        [sys.executable, "-c", SERVER, told, *(["nohup"] if nohup else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.splitlines()[1:], done.returncode


@pytest.mark.parametrize("first", [SIGTERM, SIGINT, SIGHUP])
def test_the_first_signal_stops_and_hangups_after_it_do_nothing(first: signal.Signals) -> None:
    assert served(first, SIGHUP, SIGHUP) == (["True"] * 3, 0)


@pytest.mark.parametrize("second", [SIGTERM, SIGINT])
def test_a_second_request_to_end_ends_at_once(second: signal.Signals) -> None:
    assert served(SIGTERM, SIGHUP, second) == (["True"] * 2, -second)


def test_what_nohup_started_outlives_its_terminal() -> None:
    assert served(SIGHUP, SIGTERM, nohup=True) == (["False", "True"], 0)


def test_what_a_test_starts_hears_a_hangup_under_nohup_too() -> None:
    child = "import signal; print(signal.getsignal(signal.SIGHUP).name)"
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import tests.conftest, subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "SIG_DFL\n"
