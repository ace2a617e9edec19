"""How likely guesses are right, learned for one sequence from what its text turned out to be."""

from bisect import bisect_right
from collections.abc import Sequence

_FIRST_LENGTHS = (2, 3, 4, 6)
"""Shortest match of each kind. A longer match says more, and the kinds are learned apart: prose
that repeats short phrases by chance says nothing of a passage that is being quoted."""

_PRIORS = (0.3, 0.5, 0.6, 0.8)
"""Shares that are taken to be right of a kind that was never seen."""

_PRIOR_TOKENS = 1.5
"""Tokens that a prior counts for."""

_MEMORY = 48
"""Tokens over which a kind forgets."""


class Trust:
    """Counts of guessed tokens by the length of the match that they were guessed from."""

    def __init__(self) -> None:
        self._num_right = [_PRIOR_TOKENS * prior for prior in _PRIORS]
        self._num_judged = [_PRIOR_TOKENS for _ in _PRIORS]

    def chance(self, match_length: int) -> float:
        """Likelihood that a token guessed from such a match is right where those before it are.

        Args:
            match_length: At least 2.
        """
        kind = _kind(match_length)
        return self._num_right[kind] / self._num_judged[kind]

    def learn(self, match_length: int, guessed: Sequence[int], came: Sequence[int]) -> None:
        """Takes in what became of a guess: up to its first wrong token, it is judged.

        Args:
            match_length: Match that it was guessed from.
            guessed: Its tokens.
            came: The tokens that came in their place, so far.
        """
        num_right, num_judged = 0, 0
        for guess, token_id in zip(guessed, came, strict=False):
            num_judged += 1
            if guess != token_id:
                break
            num_right += 1
        kind = _kind(match_length)
        kept = max(0.0, 1 - num_judged / _MEMORY)
        self._num_right[kind] = kept * self._num_right[kind] + num_right
        self._num_judged[kind] = kept * self._num_judged[kind] + num_judged


def _kind(match_length: int) -> int:
    return bisect_right(_FIRST_LENGTHS, match_length) - 1
