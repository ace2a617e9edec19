"""Which final hidden states the last stage is asked to add up. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenSumRequest:
    """The sum of the hidden states of consecutive rows; `stagecoach.v1.HiddenSumRequest`."""

    first_row: int
    num_rows: int
    """At least 1."""

    @property
    def end_row(self) -> int:
        """One past the last row."""
        return self.first_row + self.num_rows
