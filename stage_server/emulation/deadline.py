"""Waits until a moment, as a thread waits for a GPU: asleep, and exact."""

import time

SPIN_NS = 200_000
"""What is left of the wait when it turns from sleeping to spinning. A sleep ends 50 to 170 us late
here (the kernel's timer slack and the wake-up), so little of this is really spun."""


def wait_until(deadline_ns: int) -> None:
    """Returns at a moment of `time.perf_counter_ns()`, or at once when it has passed.

    Late by a few microseconds on a machine with a free core; without one, by what the kernel's
    scheduler makes of it.
    """
    sleep_ns = deadline_ns - SPIN_NS - time.perf_counter_ns()
    if sleep_ns > 0:
        time.sleep(sleep_ns / 1e9)
    while time.perf_counter_ns() < deadline_ns:
        pass
