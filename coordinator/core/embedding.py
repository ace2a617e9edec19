"""What an embedding of a prompt is made of: the final hidden states, pooled."""

from dataclasses import dataclass
from enum import Enum

from stagecoach.contract.errors import InvalidArgumentError


class Pooling(Enum):
    """Which hidden states of a prompt count."""

    LAST = "last"
    """The hidden state of the last token counts, which alone has seen all others."""
    MEAN = "mean"
    """All count alike: their mean is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParams:
    """How the hidden states behind the last norm become one vector.

    Raises:
        InvalidArgumentError: There would be no element.
    """

    pooling: Pooling = Pooling.LAST
    normalize: bool = True
    """Give it the length 1."""
    dimensions: int | None = None
    """Keep so many of the first elements, before the length is made 1; at least 1. None: all.
    Whether the model has as many is for the engine to check."""

    def __post_init__(self) -> None:
        """Refuses a vector without elements."""
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidArgumentError(
                f"dimensions is {self.dimensions}, must be at least 1", field="dimensions"
            )

    def first_position(self, num_prompt_tokens: int) -> int:
        """Returns the position of the first token whose hidden state counts; all later ones do."""
        return num_prompt_tokens - 1 if self.pooling is Pooling.LAST else 0
