"""How long a stage may take: learned from what it took, never too short, never endless."""

import random

from hypothesis import given
from hypothesis import strategies as st

from coordinator.pipeline.step_deadline import NUM_WARM, WINDOW, StepDeadline, StepTimeouts

TIMEOUTS = StepTimeouts()


def learned(num_tokens: int, elapsed_s: float, times: int = 2 * NUM_WARM) -> StepDeadline:
    deadline = StepDeadline(TIMEOUTS)
    for _ in range(times):
        deadline.observe(num_tokens, elapsed_s)
    return deadline


def test_a_stage_of_which_nothing_is_known_has_the_longest_time() -> None:
    deadline = StepDeadline(TIMEOUTS)
    assert deadline.limit_s(1) == 30.25
    assert deadline.limit_s(1000) == 280.0


def test_a_fast_stage_is_given_up_soon() -> None:
    assert learned(1, 0.03).limit_s(1) == TIMEOUTS.floor_s + 0.3


def test_more_tokens_may_take_in_proportion_and_fewer_no_longer() -> None:
    deadline = learned(8, 0.1)
    assert deadline.limit_s(1) == deadline.limit_s(8) == 6.0
    assert deadline.limit_s(32) == 5.0 + 10 * 0.4
    assert deadline.limit_s(2048) == 5.0 + 10 * 0.1 * 256


def test_the_limit_never_passes_that_of_an_unknown_stage() -> None:
    assert learned(1, 100.0).limit_s(4) == 31.0


def test_the_first_steps_of_a_new_stream_have_the_longest_time() -> None:
    deadline = learned(1, 0.03)
    deadline.restart()
    assert deadline.limit_s(1) == 30.25
    for _ in range(NUM_WARM):
        deadline.observe(1, 0.03)
    assert deadline.limit_s(1) < 6


def test_an_alarm_makes_the_next_one_rarer_until_the_stage_has_kept_its_time() -> None:
    deadline = learned(1, 0.03)
    before_s = deadline.limit_s(1)
    deadline.alarm()
    assert deadline.limit_s(1) == before_s + TIMEOUTS.floor_s
    deadline.alarm()
    assert deadline.limit_s(1) == before_s + 3 * TIMEOUTS.floor_s
    for _ in range(WINDOW):
        deadline.observe(1, 0.03)
    assert deadline.limit_s(1) == before_s


def test_a_slow_step_counts_as_long_as_it_is_among_the_latest() -> None:
    deadline = learned(1, 0.03)
    deadline.observe(1, 1.0)
    for _ in range(WINDOW - 1):
        deadline.observe(1, 0.03)
        assert deadline.limit_s(1) == 15.0
    deadline.observe(1, 0.03)
    assert deadline.limit_s(1) == 5.3


@given(st.integers(0, 2**32), st.integers(1, 2000))
def test_the_slowest_is_that_of_a_plain_search(seed: int, num: int) -> None:
    source = random.Random(seed)
    times_s = [source.choice((0.1, 0.2, 0.3, source.random())) for _ in range(num)]
    deadline = StepDeadline(TIMEOUTS)
    for elapsed_s in times_s:
        deadline.observe(1, elapsed_s)
    if num >= NUM_WARM:
        assert deadline.limit_s(1) == min(30.25, 5.0 + 10 * max(times_s[-WINDOW:]))
