"""Half-open ranges of decoder layers, the unit in which a model is split. Standard library only."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from protos.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Layers `[start, end)` with global indices; never empty.

    Raises:
        InvalidArgumentError: `start` is negative or `end` is not above `start`.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuses empty and negative ranges."""
        if self.start < 0 or self.end <= self.start:
            raise InvalidArgumentError(
                f"layer range {self.start}:{self.end} is empty or negative", field="layers"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `START:END`, such as `0:14`.

        Raises:
            InvalidArgumentError: `text` has another form or names an empty range.
        """
        match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
        if match is None:
            raise InvalidArgumentError(
                f"layer range {text!r} is not START:END, such as 0:14", field="layers"
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def split_evenly(cls, num_layers: int, num_stages: int) -> list[Self]:
        """Splits `num_layers` into contiguous ranges whose sizes differ by at most one.

        The larger ranges come first, because the last stage also computes the logits.

        Raises:
            InvalidArgumentError: There are fewer layers than stages, or no stage.
        """
        if not 1 <= num_stages <= num_layers:
            raise InvalidArgumentError(
                f"{num_layers} layers cannot be split over {num_stages} stages", field="stages"
            )
        size, num_larger = divmod(num_layers, num_stages)
        ranges = []
        start = 0
        for index in range(num_stages):
            end = start + size + (index < num_larger)
            ranges.append(cls(start, end))
            start = end
        return ranges

    def __len__(self) -> int:
        """Number of layers."""
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        """Global layer indices in order."""
        return iter(range(self.start, self.end))

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"{self.start}:{self.end}"
