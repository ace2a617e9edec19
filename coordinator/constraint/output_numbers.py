"""Guards the numbers of those parts of an output that are JSON; in sandboxed processes."""

from collections.abc import Sequence
from copy import copy
from typing import Self

from coordinator.constraint.number_guard import NumberGuard, NumericTokens
from coordinator.dialogue.json_scanner import JsonScanner

_BEGINS_VALUE = frozenset(b'{["-0123456789tfn')
_BLANK = frozenset(b" \t\r\n")


class OutputNumbers:
    """Finds where JSON begins in an output, and guards its numbers until it ends.

    Args:
        tokens: Tokens of the vocabulary.
        opening: What is looked for before anything else; empty: nothing is.
        json_after: Texts behind which a JSON value stands.
        begins_with_json: Whether the output may begin with one.
        limits_integers: See `NumberGuard`.
    """

    def __init__(
        self,
        tokens: NumericTokens,
        *,
        opening: bytes,
        json_after: Sequence[bytes],
        begins_with_json: bool,
        limits_integers: bool,
    ) -> None:
        self._tokens = tokens
        self._opening = opening
        self._json_after = tuple(json_after)
        self._limits_integers = limits_integers
        self._num_kept = max(map(len, (opening, *json_after)), default=0)
        self._is_open = not opening
        self._tail = b""
        """Text outside of JSON, as far as something may begin in it that is looked for."""
        self._guard: NumberGuard | None = None
        self._scanner = JsonScanner()
        self._is_before_value = False
        if begins_with_json:
            self._begin()

    def copy(self) -> Self:
        """Another one that has read the same text."""
        other = copy(self)
        other._guard = None if self._guard is None else self._guard.copy()
        other._scanner = copy(self._scanner)
        return other

    def push(self, data: bytes) -> None:
        """Takes what follows in the output."""
        for byte in data:
            if self._guard is None or not self._takes(self._guard, byte):
                self._look(byte)

    def restrict(self, mask: bytes) -> bytes:
        """See `NumberGuard.restrict`."""
        return mask if self._guard is None else self._guard.restrict(mask)

    def _begin(self) -> None:
        self._guard = NumberGuard(self._tokens, limits_integers=self._limits_integers)
        self._scanner = JsonScanner()
        self._is_before_value = True
        self._tail = b""

    def _takes(self, guard: NumberGuard, byte: int) -> bool:
        """Whether a byte belongs to the JSON value; the value may end with it."""
        if self._is_before_value and byte not in _BLANK:
            self._is_before_value = False
            if byte not in _BEGINS_VALUE:
                self._guard = None
                return False
        num_taken = self._scanner.push(chr(byte))
        if num_taken:
            guard.push(bytes([byte]))
        if self._scanner.is_done:
            self._guard = None
        return bool(num_taken)

    def _look(self, byte: int) -> None:
        """Looks for what stands before JSON."""
        self._tail = (self._tail + bytes([byte]))[-self._num_kept :]
        if not self._is_open:
            self._is_open = self._tail.endswith(self._opening)
        elif self._tail.endswith(self._json_after):
            self._begin()
