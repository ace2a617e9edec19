"""Sets of characters."""

from coordinator.constraint.code_points import CodePoints


def test_the_narrowest_gaps_beyond_ascii_are_filled_first() -> None:
    points = CodePoints.of([(1, 1), (3, 3), (0x90, 0x91), (0x93, 0x93), (0xA0, 0xA0), (0xA2, 0xA2)])
    assert points.filled(9) == points
    assert points.filled(3).ranges == ((1, 1), (3, 3), (0x90, 0x93), (0xA0, 0xA0), (0xA2, 0xA2))
    assert points.filled(2).ranges == ((1, 1), (3, 3), (0x90, 0x93), (0xA0, 0xA2))
    assert points.filled(1).ranges == ((1, 1), (3, 3), (0x90, 0xA2))
