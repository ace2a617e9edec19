"""What the last stage is asked of the rows of a prompt. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROMPT_CANDIDATES = 20
"""Most logits of one row of a prompt that are answered beside that of its next token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogitsRequest:
    """How likely the next tokens of consecutive rows are; `stagecoach.v1.PromptLogitsRequest`."""

    first_row: int
    token_ids: Sequence[int]
    """The next token of each row, at least one."""
    num_candidates: int

    @property
    def end_row(self) -> int:
        """One past the last row."""
        return self.first_row + len(self.token_ids)
