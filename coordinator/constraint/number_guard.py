"""Keeps the numbers of a JSON output within what a double holds; in sandboxed processes.

The grammar engine lets a number have any number of digits. One with more than a double keeps is
read as another number, which may lie on a bound that it must not reach, or be infinite.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Self

MAX_DIGITS = 15
"""Significant digits of a number that survive a double, whatever the digits are."""

_MAX_PLACES = 40
"""Digits of such a number, zeros at the front included."""

_MAX_EXPONENT_DIGITS = 2

_DIGITS = frozenset(b"0123456789")
_EXPONENT = frozenset(b"eE")
_NUMBER = _DIGITS | _EXPONENT | frozenset(b"+-.")


class NumericTokens:
    """The tokens of a vocabulary that a number may go on with, by what of them it goes on with."""

    def __init__(self, tokens: Iterable[tuple[int, bytes]]) -> None:
        ids: defaultdict[bytes, list[int]] = defaultdict(list)
        for token_id, spelled in tokens:
            if head := _head(spelled):
                ids[head].append(token_id)
        self.ids = dict(ids)


class NumberGuard:
    """Follows a JSON text byte by byte, and says how a number in it may not go on.

    Args:
        tokens: Tokens of the vocabulary.
        limits_integers: True when whole numbers may have no more digits either.
    """

    def __init__(self, tokens: NumericTokens, *, limits_integers: bool) -> None:
        self._tokens = tokens
        self._limits_integers = limits_integers
        self._in_string = False
        self._is_escaped = False
        self._number: _Number | None = None

    def copy(self) -> Self:
        """Another one that has read the same text."""
        other = type(self)(self._tokens, limits_integers=self._limits_integers)
        other._in_string = self._in_string
        other._is_escaped = self._is_escaped
        other._number = None if self._number is None else self._number.copy()
        return other

    def push(self, data: bytes) -> None:
        """Takes what follows in the text."""
        for byte in data:
            if self._in_string:
                self._in_string = self._is_escaped or byte != ord('"')
                self._is_escaped = byte == ord("\\") and not self._is_escaped
            elif self._number is not None and byte in _NUMBER:
                self._number.push(byte)
            elif byte in _DIGITS or byte == ord("-"):
                self._number = _Number()
                self._number.push(byte)
            else:
                self._number = None
                self._in_string = byte == ord('"')

    def restrict(self, mask: bytes) -> bytes:
        """Takes those tokens out of a mask that make a number too long, unless no other is left."""
        if self._number is None:
            return mask
        room = MAX_DIGITS - self._number.num_digits
        is_open = self._number.num_exponent_digits is None and self._number.num_places < room
        restricted = bytearray(mask)
        for head, token_ids in self._tokens.ids.items():
            if is_open and len(head) < room:
                continue
            longer = self._number.copy()
            for byte in head:
                longer.push(byte)
            if longer.is_too_long(limits_integers=self._limits_integers):
                for token_id in token_ids:
                    if token_id // 8 < len(restricted):
                        restricted[token_id // 8] &= ~(1 << token_id % 8)
        return bytes(restricted) if any(restricted) else mask


class _Number:
    """A number so far."""

    def __init__(self) -> None:
        self.num_digits = 0
        """Significant ones, before the exponent."""
        self.num_places = 0
        self.num_exponent_digits: int | None = None
        """Digits of the exponent; None without an exponent."""
        self.has_fraction = False
        self.ends_with_point = False

    def copy(self) -> Self:
        """Another one, as far."""
        other = type(self)()
        other.num_digits = self.num_digits
        other.num_places = self.num_places
        other.num_exponent_digits = self.num_exponent_digits
        other.has_fraction = self.has_fraction
        other.ends_with_point = self.ends_with_point
        return other

    def push(self, byte: int) -> None:
        """Takes what follows."""
        self.ends_with_point = byte == ord(".")
        if byte in _EXPONENT:
            self.num_exponent_digits = 0
        elif byte == ord("."):
            self.has_fraction = True
        elif byte in _DIGITS:
            if self.num_exponent_digits is not None:
                self.num_exponent_digits += 1
            else:
                self.num_places += 1
                self.num_digits += self.num_digits > 0 or byte != ord("0")

    def is_too_long(self, *, limits_integers: bool) -> bool:
        """True when a double may not keep it, or what must follow."""
        if self.num_exponent_digits is not None:
            return self.num_exponent_digits > _MAX_EXPONENT_DIGITS or self.num_digits > MAX_DIGITS
        if self.has_fraction:
            num_digits = self.num_digits + self.ends_with_point  # which wants one more
            return num_digits > MAX_DIGITS or self.num_places > _MAX_PLACES
        return limits_integers and self.num_digits > MAX_DIGITS


def _head(spelled: bytes) -> bytes:
    length = 0
    while length < len(spelled) and spelled[length] in _NUMBER:
        length += 1
    return spelled[:length]
