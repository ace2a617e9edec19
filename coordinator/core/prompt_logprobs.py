"""Log-probabilities of the tokens of a prompt, packed: there may be twenty for each of a million.

They are those of the model itself, each after all tokens before it, before anything that sampling
does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

MAX_TOKENS_PER_PIECE = 256
"""Tokens of a prompt whose log-probabilities are handed on at once."""

_BYTES_PER_TOKEN, _BYTES_PER_TOP = 8, 8


class PromptLogprob(NamedTuple):
    """Log-probabilities at the place of one token of a prompt."""

    logprob: float
    """Log-probability of the token itself."""
    rank: int
    """Its place among all tokens by falling probability, from 1 on."""
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability of the most likely tokens, falling, equal ones by rising id. The
    token itself is among them only if it is one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """Log-probabilities of consecutive tokens of a prompt. All sequences are flat buffers."""

    start: int
    """Position in the prompt of the first of the tokens, at least 1."""
    logprobs: Sequence[float]
    """Log-probability of each token, at least one."""
    ranks: Sequence[int]
    """Place of each token among all tokens by falling probability, from 1 on."""
    num_top: int
    """Most likely tokens at each place."""
    top_token_ids: Sequence[int]
    """The most likely tokens by falling probability, token after token."""
    top_logprobs: Sequence[float]

    def __len__(self) -> int:
        return len(self.logprobs)

    def __iter__(self) -> Iterator[PromptLogprob]:
        for index in range(len(self)):
            part = slice(index * self.num_top, (index + 1) * self.num_top)
            top = zip(self.top_token_ids[part], self.top_logprobs[part], strict=True)
            yield PromptLogprob(self.logprobs[index], self.ranks[index], tuple(top))

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return len(self) * (_BYTES_PER_TOKEN + self.num_top * _BYTES_PER_TOP)

    def between(self, start: int, end: int) -> Self:
        """Returns the part of the tokens `[start, end)`, counted from the first of these."""
        tops = slice(start * self.num_top, end * self.num_top)
        return replace(
            self,
            start=self.start + start,
            logprobs=self.logprobs[start:end],
            ranks=self.ranks[start:end],
            top_token_ids=self.top_token_ids[tops],
            top_logprobs=self.top_logprobs[tops],
        )

    def pieces(self, num_tokens: int = MAX_TOKENS_PER_PIECE) -> Iterator[Self]:
        """All of them in order, at most so many tokens at a time."""
        for start in range(0, len(self), num_tokens):
            yield self.between(start, min(start + num_tokens, len(self)))
