"""Progress as lines: few enough for a log, often enough to see that it moves."""

import time
from collections.abc import Callable
from types import TracebackType

from stagecoach.process.load_display.entry import Entry

MIN_PERIOD_S = 10.0
"""Shortest time between two lines about the same phase of the same stage."""


class Lines:
    """Implements `Display`: a line when a phase begins, and then now and again.

    Args:
        write_line: Takes a line.
        clock_s: Clock in seconds, which tests set.
    """

    def __init__(
        self, write_line: Callable[[str], None], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._write_line = write_line
        self._clock_s = clock_s
        self._last: dict[str, tuple[str, float]] = {}

    def show(self, name: str, entry: Entry) -> None:
        """Writes a line if there is something new to say."""
        now_s = self._clock_s()
        # The first word of an entry names its phase, or begins a reason, which may hold numbers.
        phase = entry.text.partition(" ")[0]
        last_phase, last_s = self._last.get(name, ("", 0.0))
        if entry.is_done or (phase == last_phase and now_s - last_s < MIN_PERIOD_S):
            return
        self._last[name] = (phase, now_s)
        self._write_line(f"{name}: {entry.text}" if name else entry.text)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves the lines."""
