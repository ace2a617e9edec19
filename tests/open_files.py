"""What a process holds open, to see that nothing is left of what a test had it open."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple


class OpenFile(NamedTuple):
    """A descriptor, and what it is open on: two at different times are seldom equal."""

    fd: int
    target: str


def open_files(process_id: int | None = None) -> set[OpenFile]:
    """All of a process, or of this one.

    Tests ask what is there that was not there before, and not whether as many are: garbage of
    earlier tests may be closed at any time.
    """
    files = set()
    for entry in Path(f"/proc/{process_id or os.getpid()}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            files.add(OpenFile(int(entry.name), os.readlink(entry)))
    return files
