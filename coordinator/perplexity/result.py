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
    mean_nll_error: float
    """Standard error of `mean_nll`; infinite for one token."""
    bits_per_byte: float
    """Bits that the model needs for a byte of the text in UTF-8."""

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
        error = math.sqrt(squares / (count - 1) / count) if count > 1 else math.inf
        return cls(
            num_tokens=count,
            mean_nll=mean,
            mean_nll_error=error,
            bits_per_byte=mean / math.log(2) * tokens_per_byte,
        )

    @property
    def perplexity(self) -> float:
        """The exponential of `mean_nll`."""
        return math.exp(self.mean_nll)

    @property
    def standard_error(self) -> float:
        """Standard error of `perplexity`, to first order, as if tokens were independent."""
        return self.perplexity * self.mean_nll_error
