"""Guesses for emulated stages, right as often as somebody says: a draft model that is not there.

They show what a draft brings on given cards before there is one. It is taken to run while the
pipeline is busy, so it takes no time. Texts are those without guesses.
"""

from collections.abc import Sequence

from coordinator.core.drafter import Guess
from coordinator.speculation.trust import Trust
from stagecoach.roofline.hashed_tokens import EMPTY_HASH, mix

_LONG_MATCH = 6
"""What all guesses count as."""

_COIN = 0x5EED


class EmulatedDrafter:
    """Guesses for one sequence; see `Drafter`.

    Args:
        prompt_token_ids: Its prompt.
        output_token_ids: Its output, a list that grows.
        acceptance: Share of guessed tokens that are the most likely ones, from 0 to 1.
        vocab_size: Tokens that there are, at least 2.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        *,
        acceptance: float,
        vocab_size: int,
    ) -> None:
        self._prompt = prompt_token_ids
        self._output = output_token_ids
        self._acceptance = acceptance
        self._vocab_size = vocab_size
        self._num_seen = 0
        self._hash: int | None = None
        self._guessed: list[int] = []
        self._trust = Trust()

    def guess(self, max_num_tokens: int) -> Guess:
        """Guesses what the stages find most likely, or another token; see `Drafter.guess`."""
        if self._hash is None:
            self._hash = EMPTY_HASH
            for token_id in self._prompt:
                self._hash = mix(self._hash, token_id)
        fresh = self._output[self._num_seen :]
        self._trust.learn(_LONG_MATCH, self._guessed, fresh)
        for token_id in fresh:
            self._hash = mix(self._hash, token_id)
        self._num_seen += len(fresh)
        value = self._hash
        self._guessed = []
        for _ in range(max_num_tokens):
            is_wrong = mix(value, _COIN) >= self._acceptance * 2**32
            self._guessed.append((value + is_wrong) % self._vocab_size)
            value = mix(value, self._guessed[-1])
        return Guess(tuple(self._guessed), self._trust.chance(_LONG_MATCH))
