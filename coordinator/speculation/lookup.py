"""Guesses by looking up what followed the newest tokens the last time that they occurred.

After prompt look-up decoding (A. Saxena, 2023) and the n-gram drafts of vLLM. Text that quotes,
edits or sums up repeats long runs of its prompt; code and JSON repeat themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.core.drafter import Guess
from coordinator.speculation.trust import Trust

MIN_MATCH = 2
"""Tokens that must have occurred before; one alone says nothing."""

MAX_MATCH = 8
"""Longest match that is told from longer ones."""

_MAX_PLACES = 1024
"""Places of the newest token that are looked at, the latest ones: a text of one word over and over
costs no more than others."""


class Match(NamedTuple):
    """Where the newest tokens occurred before."""

    end: int
    """Index of the token that followed them there."""
    length: int
    """How many tokens are the same, from `MIN_MATCH` to `MAX_MATCH`."""


def look_up(token_ids: npt.NDArray[np.int32]) -> Match | None:
    """Finds the longest run of the newest tokens that occurred before; of equal ones the latest.

    Args:
        token_ids: A whole sequence, `[num_tokens]`.

    Returns:
        None when no run of `MIN_MATCH` tokens did.
    """
    newest = len(token_ids) - 1
    places = np.flatnonzero(token_ids[:newest] == token_ids[newest:])[-_MAX_PLACES:]
    length = 1
    best = places
    while length < MAX_MATCH and length <= newest:
        before = best[best >= length]
        longer = before[token_ids[before - length] == token_ids[newest - length]]
        if not len(longer):
            break
        best, length = longer, length + 1
    if length < MIN_MATCH:
        return None
    return Match(int(best[-1]) + 1, length)


class LookupDrafter:
    """Guesses for one sequence from its own prompt and output; see `Drafter`.

    Args:
        prompt_token_ids: Its prompt.
        output_token_ids: Its output, a list that grows.
    """

    def __init__(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
        self._prompt = prompt_token_ids
        self._output = output_token_ids
        self._num_seen = 0
        self._token_ids = np.empty(0, dtype=np.int32)
        """The prompt, once there was a guess to make, and the output so far; then room."""
        self._num_tokens = 0
        self._trust = Trust()
        self._guessed: tuple[int, ...] = ()
        self._match_length = 0

    def guess(self, max_num_tokens: int) -> Guess:
        """Guesses what followed the last time; see `Drafter.guess`."""
        if self._num_tokens == 0:
            self._take_prompt()
        self._learn(self._output[self._num_seen :])
        match = look_up(self._token_ids[: self._num_tokens])
        if match is None:
            return Guess()
        self._guessed = self._continued(match.end, max_num_tokens)
        self._match_length = match.length
        return Guess(self._guessed, self._trust.chance(match.length))

    def _take_prompt(self) -> None:
        self._num_tokens = len(self._prompt)
        self._token_ids = np.empty(2 * self._num_tokens + 64, dtype=np.int32)
        self._token_ids[: self._num_tokens] = self._prompt

    def _continued(self, start: int, num_tokens: int) -> tuple[int, ...]:
        """The tokens from `start` on; a run that reaches the end of the sequence repeats itself."""
        period = self._num_tokens - start
        places = start + np.arange(num_tokens) % period
        return tuple(self._token_ids[places].tolist())

    def _learn(self, token_ids: Sequence[int]) -> None:
        """Takes in the tokens that came since the last guess."""
        if self._guessed:
            self._trust.learn(self._match_length, self._guessed, token_ids)
        self._guessed = ()
        self._num_seen += len(token_ids)
        num_tokens = self._num_tokens + len(token_ids)
        while num_tokens > len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty_like(self._token_ids)])
        self._token_ids[self._num_tokens : num_tokens] = token_ids
        self._num_tokens = num_tokens
