"""Numbers of the wire that people are shown."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.float32 import as_meant


@pytest.mark.parametrize("meant", [0.0, 0.3, -0.1, 200.1, 16777216.0, 3.4e38, 0.33333334])
def test_a_number_is_shown_as_it_was_meant(meant: float) -> None:
    (travelled,) = struct.unpack("<f", struct.pack("<f", meant))
    assert as_meant(travelled) == as_meant(meant) == meant


@given(st.floats(width=32, allow_nan=False))
def test_it_is_still_the_same_float32(value: float) -> None:
    assert struct.pack("<f", as_meant(value)) == struct.pack("<f", value)


def test_what_no_float32_holds_is_infinite() -> None:
    assert as_meant(1e39) == math.inf
    assert as_meant(-1e39) == -math.inf
    assert math.isnan(as_meant(math.nan))
