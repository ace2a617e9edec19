"""Progress as bars at the bottom of a terminal; logs and other lines of stderr pass above them."""

import logging
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from stagecoach.process.load_display.entry import Entry

_TOTAL = 1.0


class Bars:
    """Implements `Display` with one bar a name, gone when it is done.

    Args:
        names: In order.
    """

    def __init__(self, names: list[str]) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._names = names
        self._stack = ExitStack()

    def show(self, name: str, entry: Entry) -> None:
        """Moves the bar of a name, or adds it."""
        if name not in self._tasks:
            self._add(name)
        has_bytes = entry.share is not None or entry.is_done
        self._progress.update(
            self._tasks[name],
            total=_TOTAL if has_bytes else None,
            completed=_TOTAL if entry.is_done else entry.share or 0.0,
            text=escape(entry.text),
        )

    def _add(self, name: str) -> None:
        self._tasks[name] = self._progress.add_task(
            "", total=None, name=escape(name), text="starting"
        )

    def __enter__(self) -> "Bars":
        before = sys.stderr
        self._stack.enter_context(self._progress)  # replaces sys.stderr while it runs
        self._stack.callback(_redirect_logs, sys.stderr, before)
        _redirect_logs(before, sys.stderr)
        for name in self._names:
            self._add(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def _redirect_logs(source: TextIO, target: TextIO) -> None:
    """Moves the log handlers that write to one stream to another one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is source:
            handler.setStream(target)
