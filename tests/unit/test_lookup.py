"""Guesses by look-up: against a slow search for the longest match, and what they are trusted."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from coordinator.core.drafter import Guess
from coordinator.speculation.lookup import (
    MAX_MATCH,
    MIN_MATCH,
    LookupDrafter,
    Match,
    look_up,
)


def slow_look_up(token_ids: Sequence[int]) -> Match | None:
    """The longest run of newest tokens that is found elsewhere, and the last place of it."""
    for length in range(MAX_MATCH, MIN_MATCH - 1, -1):
        run = list(token_ids[len(token_ids) - length :])
        if len(run) < length:
            continue
        for end in range(len(token_ids) - 1, length - 1, -1):
            if list(token_ids[end - length : end]) == run:
                return Match(end, length)
    return None


@pytest.mark.parametrize("num_kinds", [1, 2, 3, 20])
def test_the_longest_match_is_found(num_kinds: int) -> None:
    draw = random.Random(num_kinds)
    for num_tokens in [*range(1, 12), *range(12, 300, 7)]:
        token_ids = [draw.randrange(num_kinds) for _ in range(num_tokens)]
        assert look_up(np.array(token_ids, dtype=np.int32)) == slow_look_up(token_ids)


def test_a_text_of_one_token_is_looked_up_in_its_latest_places() -> None:
    assert look_up(np.zeros(100_000, dtype=np.int32)) == Match(99_999, MAX_MATCH)


def test_what_followed_is_guessed() -> None:
    drafter = LookupDrafter((5, 6, 7, 8, 9, 1, 5, 6), [])
    assert drafter.guess(3).token_ids == (7, 8, 9)


def test_a_run_that_reaches_the_end_is_guessed_to_go_on() -> None:
    drafter = LookupDrafter((1, 2, 3, 1, 2), [])
    assert drafter.guess(7).token_ids == (3, 1, 2, 3, 1, 2, 3)


@pytest.mark.parametrize("prompt", [(), (1,), (1, 1), (1, 2), (1, 2, 3, 4)])
def test_nothing_is_guessed_where_nothing_repeats(prompt: tuple[int, ...]) -> None:
    assert LookupDrafter(prompt, []).guess(5) == Guess()


def test_output_is_looked_up_like_the_prompt() -> None:
    output: list[int] = []
    drafter = LookupDrafter((9,), output)
    draw = random.Random(0)
    passage = [draw.randrange(100, 10_000) for _ in range(300)]
    for token_id in passage:
        assert drafter.guess(4) == Guess()
        output.append(token_id)
    output += passage[40:43]
    assert drafter.guess(4).token_ids == tuple(passage[43:47])


def chance_after(*, times: int, is_right: bool) -> float:
    """What a match of two tokens is trusted once it went on as before, or never so, so often."""
    output: list[int] = []
    drafter = LookupDrafter((1, 2, 3, 4, 5), output)
    for number in range(times):
        output += (1000 + number, 1, 2)
        drafter.guess(2)
        output += (3, 4) if is_right else (2000 + number, 3000 + number)
    output += (999, 1, 2)
    return drafter.guess(2).chance


def test_trust_follows_what_came_true() -> None:
    never, unknown, always = (
        chance_after(times=9, is_right=False),
        chance_after(times=0, is_right=True),
        chance_after(times=9, is_right=True),
    )
    assert never < unknown < always
    assert always > 0.8


def test_guesses_that_were_not_used_are_learned_from_too() -> None:
    """The drafter sees the tokens alone, so it cannot tell."""
    output: list[int] = []
    drafter = LookupDrafter((1, 2, 3, 1, 2), output)
    before = drafter.guess(4).chance
    output.append(3)
    drafter.guess(4)
    output += (50, 1, 2)
    assert drafter.guess(4).chance > before
