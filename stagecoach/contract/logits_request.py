"""Which logits of one row the last stage is asked for. Standard library only."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRequest:
    """What the sampler needs of one row; see `stagecoach.v1.LogitsRequest`."""

    row: int
    num_candidates: int
    min_mass: float | None = None
    min_gap: float | None = None
    temperature: float = 1.0
    token_ids: tuple[int, ...] = ()
    wants_unit_log_sum_exp: bool = False
    num_contenders: int = 0
    noise_key: int = 0

    def without_contenders(self, vocab_size: int) -> Self:
        """The same of a stage that does not know them: then with the full row."""
        if self.num_contenders == 0:
            return self
        return replace(self, num_candidates=vocab_size, num_contenders=0, noise_key=0, token_ids=())
