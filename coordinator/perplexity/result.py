"""What was measured of a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How well a model expects a text. All logarithms are natural ones."""

    num_tokens: int
    """Tokens that were counted."""
    mean_nll: float
    """Mean negative log-likelihood of a token."""
    mean_nll_error: float | None
    """Standard error of `mean_nll`; None for one token, which has none."""
    bits_per_byte: float
    """Bits that the model needs for a byte of the text in UTF-8: those of a token that was counted,
    by the tokens to a byte in all that was tokenized."""

    @classmethod
    def of(cls, logprobs: Sequence[float], *, tokens_per_byte: float) -> Self:
        """Sums up.

        Args:
            logprobs: Log-probability of each token that is counted, at least one.
            tokens_per_byte: Tokens that the text has for each of its bytes.
        """
        count = len(logprobs)
        mean = -math.fsum(logprobs) / count
        squares = math.fsum((logprob + mean) ** 2 for logprob in logprobs)
        error = math.sqrt(squares / (count - 1) / count) if count > 1 else None
        return cls(
            num_tokens=count,
            mean_nll=mean,
            mean_nll_error=error,
            bits_per_byte=mean / math.log(2) * tokens_per_byte,
        )

    @property
    def perplexity(self) -> float:
        """The exponential of `mean_nll`; infinite where that is no float."""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf

    @property
    def standard_error(self) -> float | None:
        """Standard error of `perplexity`, to first order, as if tokens were independent."""
        return None if self.mean_nll_error is None else self.perplexity * self.mean_nll_error
