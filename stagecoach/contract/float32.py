"""Numbers that travel as float32, as they were meant. Needs only the standard library."""

import math
import struct

_FLOAT32 = struct.Struct("<f")
_FEWEST_DIGITS, _MOST_DIGITS = 6, 9
"""A float32 keeps every decimal of the former, and the latter tell any two of them apart."""


def as_meant(value: float) -> float:
    """Returns the number of few digits that is the same float32: 0.3, not 0.30000001192092896.

    Args:
        value: A float32, or what becomes one; one that is too large becomes infinite.
    """
    try:
        wire = _FLOAT32.pack(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    for num_digits in range(_FEWEST_DIGITS, _MOST_DIGITS):
        short = float(f"{value:.{num_digits}g}")
        if _same(short, wire):
            return short
    return float(f"{_FLOAT32.unpack(wire)[0]:.{_MOST_DIGITS}g}")


def _same(value: float, wire: bytes) -> bool:
    try:
        return _FLOAT32.pack(value) == wire
    except OverflowError:
        return False
