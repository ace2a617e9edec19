"""Messages between the coordinator and its sandboxed processes, over a pair of Unix sockets.

A frame is a kind, a length and a body. A descriptor that goes with a frame is sent with its first
byte. Anything else on the way back, such as the words of a dying interpreter, is no frame.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

_HEADER = struct.Struct("<BI")
CALL_HEADER = struct.Struct("<I")
"""Before the payload of a call: its time limit in ms; 0 for none."""
FORK_BODY = struct.Struct("<Q")
"""Bytes that the new process may take beyond those of its parent; 0 for no limit."""
FORKED_BODY = struct.Struct("<I")
"""Its process id."""


class FrameKind(IntEnum):
    """What a frame says. None is the first letter of what a dying interpreter says."""

    CALL = 1
    FORK = 2
    """Asks for a fork; carries a socket for the new process."""
    DONE = 3
    FAILED = 4
    NO_MEMORY = 5
    FORKED = 6
    """Tells that it forked; carries a descriptor of the new process."""
    NOT_FORKED = 7


class Frame(NamedTuple):
    """One message."""

    kind: FrameKind
    body: bytes


def encode(kind: FrameKind, *parts: bytes) -> bytes:
    """Writes a frame whose body is the parts in turn."""
    return b"".join((_HEADER.pack(kind, sum(map(len, parts))), *parts))


class FrameReader:
    """Cuts what comes in into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def push(self, data: bytes) -> None:
        """Takes what came in."""
        self._data += data

    def next(self) -> Frame | None:
        """The next whole frame; None when it is not whole yet, or is none."""
        if len(self._data) < _HEADER.size:
            return None
        kind, num_bytes = _HEADER.unpack_from(self._data)
        end = _HEADER.size + num_bytes
        if kind not in _KINDS or len(self._data) < end:
            return None
        body = bytes(memoryview(self._data)[_HEADER.size : end])
        del self._data[:end]
        return Frame(FrameKind(kind), body)

    @property
    def rest(self) -> bytes:
        """What is no frame: nothing of one whose end is missing."""
        return b"" if self._data and self._data[0] in _KINDS else bytes(self._data)


_KINDS = frozenset(FrameKind)
