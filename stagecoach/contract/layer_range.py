"""Half-open ranges of decoder layers, the unit in which a model is split. Standard library only."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError


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
                f"layers {self.start}:{self.end} is empty or negative", field="layers"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `START:END`, such as `0:14`.

        Raises:
            InvalidArgumentError: `text` has another form or names an empty range.
        """
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text)
        if match is None:
            raise InvalidArgumentError(
                f"layers {text!r} is not START:END, such as 0:14", field="layers"
            )
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"{self.start}:{self.end}"
