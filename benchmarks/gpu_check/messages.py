"""What a check's process tells the one that started it: lines of JSON, in a file.

A file rather than a pipe: lines that were written before a process died are there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from benchmarks.gpu_check.report import Figure, Limit


class Names(NamedTuple):
    """Of the rows that the check is going to have; said before it measures."""

    names: tuple[str, ...]


class Fact(NamedTuple):
    """Something for the head of the report."""

    name: str
    text: str


class Failure(NamedTuple):
    """Why the check ended early, in a line."""

    reason: str


class End(NamedTuple):
    """The check ran to its end."""


Message = Names | Fact | Figure | Failure | End

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Names, Fact, Figure, Failure, End)
}


def write_message(file: TextIO, message: Message) -> None:
    """Writes a line at once, so that it outlives this process."""
    file.write(json.dumps([type(message).__name__, message._asdict()]) + "\n")
    file.flush()


def read_messages(path: Path) -> Sequence[Message]:
    """Reads all lines; one that its writer did not finish is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [_read(line) for line in lines if line.endswith("\n")]


def _read(line: str) -> Message:
    kind, fields = json.loads(line)
    if kind == Figure.__name__:
        fields["limit"] = Limit(*fields["limit"])
    if kind == Names.__name__:
        fields["names"] = tuple(fields["names"])
    return _KINDS[kind](**fields)
