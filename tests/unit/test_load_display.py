"""What is shown while models load."""

import logging
import sys

import pytest

from coordinator.stage_waits import StageWaits
from stagecoach.contract.errors import DeadlineExceededError, LoadingError, UnavailableError
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.process.load_display import Entry, load_display
from stagecoach.process.load_display.bars import Bars
from stagecoach.process.load_display.lines import MIN_PERIOD_S, Lines


def at(done_bytes: int, phase: LoadPhase = LoadPhase.LOADING) -> Entry:
    return Entry.of(LoadProgress(phase=phase, done_bytes=done_bytes, total_bytes=1_000_000))


def test_lines_tell_each_phase_once_and_then_now_and_again() -> None:
    lines: list[str] = []
    now_s = 100.0
    display = Lines(lines.append, lambda: now_s)
    display.show("stage 0", at(0))
    display.show("stage 0", at(200_000))
    display.show("stage 1", at(100_000))
    now_s += MIN_PERIOD_S
    display.show("stage 0", at(300_000))
    display.show("stage 0", Entry("warming up"))
    display.show("stage 0", Entry("ready", is_done=True))
    assert lines == [
        "stage 0: loading 0.0 of 1.0 MB (0 %)",
        "stage 1: loading 0.1 of 1.0 MB (10 %)",
        "stage 0: loading 0.3 of 1.0 MB (30 %)",
        "stage 0: warming up",
    ]


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with load_display(["a"], lines.append) as display:
        display.show("a", at(500_000))
    assert lines == ["a: loading 0.5 of 1.0 MB (50 %)"]
    assert capsys.readouterr() == ("", "")


def test_logs_pass_above_the_bars_and_go_their_old_way_afterwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(sys.stderr)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with Bars(["stage 0", "stage 1"]) as display:
            display.show("stage 0", at(500_000))
            logging.getLogger("test").warning("in the log")
            assert handler.stream is not sys.__stderr__
            display.show("stage 1", Entry("ready [all]", is_done=True))
        assert handler.stream is sys.stderr
    finally:
        root.removeHandler(handler)
    shown = capsys.readouterr().err
    for part in ("in the log\n", "stage 0", "loading 0.5 of 1.0 MB (50 %)", "ready [all]"):
        assert part in shown


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def show(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry


def test_a_coordinator_says_what_it_waits_for_until_every_stage_serves() -> None:
    display = Shown()
    waits = StageWaits(display)
    progress = LoadProgress(phase=LoadPhase.LOADING, done_bytes=500_000, total_bytes=1_000_000)
    assert waits.update("b:1", UnavailableError("refused")) == "stage b:1 is not reachable"
    assert waits.update("a:1", LoadingError("it loads", progress=progress)) == (
        "stage a:1 is loading 0.5 of 1.0 MB (50 %); stage b:1 is not reachable"
    )
    assert display.entries["a:1"].share == 0.5
    assert waits.update("a:1", None) == "stage b:1 is not reachable"
    assert waits.update("b:1", DeadlineExceededError("late")) == "stage b:1 is not answering"
    assert waits.update("b:1", None) == "it opens its stages"
    assert all(entry.is_done for entry in display.entries.values())
