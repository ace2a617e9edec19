"""Guesses of what a sequence goes on with, and who makes them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Guess(NamedTuple):
    """Tokens that a sequence may go on with."""

    token_ids: tuple[int, ...] = ()
    """The next tokens, in order; empty when there is nothing to guess by."""
    chance: float = 0.0
    """Likelihood, from 0 to 1, that each of them is right where all before it are."""


class Drafter(Protocol):
    """Guesses for one sequence, of which it sees the tokens. Costs microseconds."""

    def guess(self, max_num_tokens: int) -> Guess:
        """Guesses what comes after the newest token.

        It learns from the tokens that came since the last call, whether or not that guess was used.

        Args:
            max_num_tokens: Most tokens that are wanted; at least 1.
        """
        ...


MakeDrafter = Callable[[Sequence[int], Sequence[int]], Drafter]
"""Makes the drafter of a sequence, given its prompt and its output, a list that grows."""
