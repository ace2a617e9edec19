"""How many guessed tokens are checked: as many as make for the most tokens a second."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.drafter import Guess
from coordinator.scheduler.draft_lengths import MAX_DRAFTS, MIN_GAIN, draft_lengths, may_pay
from tests.scripted_drafts import flat


def expected_tokens(chance: float, length: int) -> float:
    """Tokens that a guess of such a length is expected to bring."""
    return sum(chance**place for place in range(1, length + 1))


def slow_best_rate(chances: list[float], num_most: int, fixed: float, per_row: float) -> float:
    """Tokens a second of the best of all choices."""
    return max(
        (len(chances) + sum(map(expected_tokens, chances, lengths)))
        / (fixed + per_row * (len(chances) + sum(lengths)))
        for lengths in product(range(num_most + 1), repeat=len(chances))
    )


@given(
    chances=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3),
    fixed=st.floats(0.0, 10.0),
    per_row=st.floats(0.01, 2.0),
)
def test_no_other_choice_is_faster(chances: list[float], fixed: float, per_row: float) -> None:
    guesses = [Guess((1, 2, 3, 4), chance) for chance in chances]

    def duration_ns(num_rows: int) -> float:
        return fixed + per_row * num_rows

    lengths = draft_lengths(
        guesses, num_decodes=len(chances), max_num_drafts=99, duration_ns=duration_ns
    )
    found = len(chances) + sum(map(expected_tokens, chances, lengths))
    rate = found / duration_ns(len(chances) + sum(lengths))
    best = slow_best_rate(chances, 4, fixed, per_row)
    plain = len(chances) / duration_ns(len(chances))
    if best > MIN_GAIN * plain * (1 + 1e-9):
        assert rate == pytest.approx(best)
    else:
        assert lengths == [0] * len(chances) or rate >= MIN_GAIN * plain


def test_what_costs_as_much_as_a_token_is_not_guessed() -> None:
    """A full load: the time of a micro-batch is that of its rows."""
    guesses = [Guess(tuple(range(15)), 0.99)] * 8
    lengths = draft_lengths(guesses, num_decodes=8, max_num_drafts=99, duration_ns=float)
    assert lengths == [0] * 8
    assert not may_pay(float, 8)


def test_rows_that_cost_nothing_are_all_used() -> None:
    guesses = [Guess(tuple(range(99)), 0.9), Guess(), Guess((1, 2), 0.1)]
    lengths = draft_lengths(guesses, num_decodes=3, max_num_drafts=99, duration_ns=flat)
    assert lengths == [MAX_DRAFTS, 0, 2]
    assert may_pay(flat, 3)


def test_the_room_of_the_micro_batch_is_kept() -> None:
    guesses = [Guess((1, 2, 3), 0.5), Guess((1, 2, 3), 0.9)]
    lengths = draft_lengths(guesses, num_decodes=2, max_num_drafts=3, duration_ns=flat)
    assert lengths == [0, 3]
    assert draft_lengths(guesses, num_decodes=2, max_num_drafts=0, duration_ns=flat) == [0, 0]


def test_guesses_that_never_come_true_are_not_used() -> None:
    lengths = draft_lengths([Guess((1, 2), 0.0)], num_decodes=1, max_num_drafts=9, duration_ns=flat)
    assert lengths == [0]
