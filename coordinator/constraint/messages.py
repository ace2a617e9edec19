"""What the coordinator and the processes that follow outputs say to each other."""

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Self

from coordinator.core.grammar import GrammarKind

_HEADER = struct.Struct("<BQ")
_LENGTH = struct.Struct("<I")
_FIELD_END = "\0"


class Standing(IntEnum):
    """How an output stands to its grammar."""

    OPEN = 1
    """Tokens may follow."""
    COMPLETE = 2
    """The output is whole, and nothing can follow."""
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
    field: str = ""
    """Field of the part of the grammar that it speaks of; empty: it is all of the grammar."""

    @classmethod
    def open(cls, mask: bytes) -> Self:
        """Some tokens may follow."""
        return cls(Standing.OPEN, mask=mask)

    @classmethod
    def complete(cls) -> Self:
        """Nothing can follow what is whole."""
        return cls(Standing.COMPLETE)

    @classmethod
    def broken(cls, error: str, field: str = "") -> Self:
        """Nothing can follow what is not whole."""
        return cls(Standing.BROKEN, error=error, field=field)


def encode_state(state: OutputState, *, own_bytes: int = 0) -> bytes:
    """Writes a state, and the memory that its process holds."""
    return _HEADER.pack(state.standing, own_bytes) + (state.mask or _words(state))


def _words(state: OutputState) -> bytes:
    return f"{state.field}{_FIELD_END}{state.error}".encode() if state.error else b""


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
            field, _, error = body.decode().partition(_FIELD_END)
            return OutputState.broken(error, field), own_bytes


class Compiled(NamedTuple):
    """A grammar that was compiled, or what is wrong with it."""

    state: OutputState
    """What may follow at the start."""
    own_bytes: int = 0
    """Memory that the process holds."""
    relaxed_fields: tuple[str, ...] = ()
    """Fields of the request with schemas that the output is not held to."""


def encode_compiled(compiled: Compiled) -> bytes:
    """Writes what became of a grammar."""
    fields = json.dumps(compiled.relaxed_fields).encode()
    state = encode_state(compiled.state, own_bytes=compiled.own_bytes)
    return _LENGTH.pack(len(fields)) + fields + state


def decode_compiled(data: bytes) -> Compiled:
    """Reads what `encode_compiled` wrote."""
    (num_bytes,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + num_bytes
    fields = json.loads(data[_LENGTH.size : start])
    state, own_bytes = decode_state(data[start:])
    return Compiled(state, own_bytes, tuple(fields))


def encode_states(states: Iterable[OutputState]) -> bytes:
    """Writes what may follow in several outputs."""
    parts: list[bytes] = []
    for state in states:
        part = encode_state(state)
        parts += (_LENGTH.pack(len(part)), part)
    return b"".join(parts)


def decode_states(data: bytes, num_states: int) -> list[OutputState]:
    """Reads what may follow in several outputs.

    Raises:
        ValueError: It is something else.
    """
    states: list[OutputState] = []
    start = 0
    try:
        while start < len(data):
            (num_bytes,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size + num_bytes
            states.append(decode_state(data[start - num_bytes : start])[0])
    except struct.error as error:
        raise ValueError("a state is cut off") from error
    if len(states) != num_states or start != len(data):
        raise ValueError(f"{len(states)} states in {len(data)} bytes, {num_states} were asked for")
    return states


class NewTokens(NamedTuple):
    """Tokens that one output of a process goes on with, and begins with if it is new."""

    output: int
    """Its number in the process."""
    token_ids: Sequence[int]
    """New tokens of the output; empty when nobody follows the output any more."""


def encode_tokens(news: Iterable[NewTokens]) -> bytes:
    """Writes the new tokens of several outputs."""
    words = array("I")
    for output, token_ids in news:
        words.extend((output, len(token_ids), *token_ids))
    return words.tobytes()


def decode_tokens(data: bytes) -> Iterator[tuple[int, list[int]]]:
    """Reads the new tokens of several outputs, each with its number."""
    words = memoryview(data).cast("I")
    start = 0
    while start < len(words):
        output, num_tokens = words[start : start + 2]
        start += 2 + num_tokens
        yield output, words[start - num_tokens : start].tolist()


def encode_grammar(kind: GrammarKind, text: str) -> bytes:
    """Writes a grammar."""
    return json.dumps([kind.value, text]).encode()


def decode_grammar(data: bytes) -> tuple[GrammarKind, str]:
    """Reads a grammar."""
    kind, text = json.loads(data)
    return GrammarKind(kind), text
