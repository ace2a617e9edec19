"""What the coordinator and the processes that follow outputs say to each other."""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from coordinator.core.grammar import GrammarKind

_HEADER = struct.Struct("<BQ")
_TOKEN = struct.Struct("<I")


class Standing(IntEnum):
    """How an output stands to its grammar."""

    OPEN = 1
    """Tokens may follow."""
    COMPLETE = 2
    """It is whole, and nothing can follow."""
    BROKEN = 3
    """Nothing can follow, and it is not whole."""


@dataclass(frozen=True, slots=True)
class OutputState:
    """What may follow in an output."""

    standing: Standing
    mask: bytes = b""
    """A bit for every token that may follow, the lowest first; of an open one."""
    error: str = ""
    """What the grammar engine says of a broken one; empty when it says nothing."""

    @classmethod
    def open(cls, mask: bytes) -> Self:
        """Some tokens may follow."""
        return cls(Standing.OPEN, mask=mask)

    @classmethod
    def complete(cls) -> Self:
        """Nothing can follow what is whole."""
        return cls(Standing.COMPLETE)

    @classmethod
    def broken(cls, error: str) -> Self:
        """Nothing can follow what is not whole."""
        return cls(Standing.BROKEN, error=error)


def encode_state(state: OutputState, *, own_bytes: int = 0) -> bytes:
    """Writes a state, and the memory that its process holds."""
    return _HEADER.pack(state.standing, own_bytes) + (state.mask or state.error.encode())


def decode_state(data: bytes) -> tuple[OutputState, int]:
    """Reads a state and the memory that its process holds."""
    standing, own_bytes = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    match Standing(standing):
        case Standing.OPEN:
            return OutputState.open(body), own_bytes
        case Standing.COMPLETE:
            return OutputState.complete(), own_bytes
        case Standing.BROKEN:
            return OutputState.broken(body.decode()), own_bytes


def encode_token(token_id: int) -> bytes:
    """Writes a token of output."""
    return _TOKEN.pack(token_id)


def decode_token(data: bytes) -> int:
    """Reads a token of output."""
    token_id: int = _TOKEN.unpack(data)[0]
    return token_id


def encode_grammar(kind: GrammarKind, text: str) -> bytes:
    """Writes a grammar."""
    return json.dumps([kind.value, text]).encode()


def decode_grammar(data: bytes) -> tuple[GrammarKind, str]:
    """Reads a grammar."""
    kind, text = json.loads(data)
    return GrammarKind(kind), text
