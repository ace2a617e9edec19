"""Which pieces of a long text a model sees, so that every token is expected from some others.

As Hugging Face does it: windows overlap, and each token is counted once, in the first window that
holds it. So it has at least `context - stride` tokens before it, unless it stands in the first
window. https://huggingface.co/docs/transformers/perplexity
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError


class Window(NamedTuple):
    """Tokens `[start, end)` of a text, of which those from `first_counted` on are counted."""

    start: int
    first_counted: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a text is cut.

    Raises:
        InvalidArgumentError: A window would have no token before the first that it counts.
    """

    context: int
    """Tokens that a model sees at once, a begin token included."""
    stride: int
    """Tokens from the start of one window to that of the next."""
    num_begin_tokens: int
    """Tokens that the model wants before each window."""

    def __post_init__(self) -> None:
        """Refuses what leaves nothing to expect a token from."""
        if self.num_text_tokens < 2:
            raise InvalidArgumentError(
                f"context is {self.context}, must be at least {self.num_begin_tokens + 2}",
                field="context",
            )
        if not 1 <= self.stride < self.num_text_tokens:
            raise InvalidArgumentError(
                f"stride is {self.stride}, must be from 1 to {self.num_text_tokens - 1}: a window"
                f" holds {self.num_text_tokens} tokens of the text",
                field="stride",
            )

    @property
    def num_text_tokens(self) -> int:
        """Tokens of the text in a window."""
        return self.context - self.num_begin_tokens

    def windows(self, num_tokens: int) -> Iterator[Window]:
        """Yields the windows of a text of so many tokens; none where no token can be counted."""
        counted = 0 if self.num_begin_tokens else 1
        start = 0
        while counted < num_tokens:
            end = min(start + self.num_text_tokens, num_tokens)
            yield Window(start, counted, end)
            start, counted = start + self.stride, end
