"""The meter's window slides by whole seconds."""

import pytest

from coordinator.engine.throughput import ThroughputMeter


def test_the_mean_is_over_the_window_and_old_tokens_leave_it() -> None:
    meter = ThroughputMeter(window_s=10)
    for second in range(20):
        meter.add(3, second + 0.2)
        meter.add(2, second + 0.9)
    assert meter.total == 100
    assert meter.tokens_per_second(19.9) == pytest.approx(5.0)
    assert meter.tokens_per_second(24.0) == pytest.approx(2.5)
    assert meter.tokens_per_second(100.0) == 0
