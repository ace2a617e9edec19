"""What there is to do, and how much of it goes into one micro-batch: plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the running sequences, and the waiting ones that have a slot to go to, still need."""

    num_decodes: int
    """Sequences that decode, those in flight included; see `Sequence.is_decoding`."""
    num_prefills: int
    """All others: new prompts, and what is recomputed."""
    num_prefill_tokens: int
    """Tokens that those need."""
    empty_kv_share: float
    """Share of the KV memory that holds no computed token, from 0 to 1."""

    @property
    def num_sequences(self) -> int:
        """Sequences that can be spread over micro-batches."""
        return self.num_decodes + self.num_prefills


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBudget:
    """What one micro-batch may hold, besides the token budget of the configuration."""

    max_num_decodes: int
    max_num_prefill_tokens: int
    duration_ns: Callable[[int], float] | None = None
    """Time of a micro-batch with so many rows, as far as guessed tokens are concerned; None where
    none are to be guessed."""
