"""A micro-batch inside a stage: ragged rows, slot operations and the logits that are wanted.

Plain data, made by the servicer from a validated message. The rows of all slices lie packed one
after another, never padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class SequenceSlice(NamedTuple):
    """Consecutive tokens of one sequence."""

    kv_slot: int
    start_position: int
    """Position of the first token in its sequence."""
    num_tokens: int
    """Tokens to compute, at least 1."""

    @property
    def is_decode(self) -> bool:
        """True for one token. All other slices are prefill.

        Which rows are sampled only the last stage is told.
        """
        return self.num_tokens == 1

    @property
    def end_position(self) -> int:
        """One past the last position; the tokens the slot holds after the forward."""
        return self.start_position + self.num_tokens


class FreeSlot(NamedTuple):
    """Gives a slot's blocks back; freeing an empty slot does nothing."""

    kv_slot: int


class TruncateSlot(NamedTuple):
    """Keeps the first `num_tokens` tokens of a slot."""

    kv_slot: int
    num_tokens: int


class ForkSlot(NamedTuple):
    """Makes the empty target share the first `num_tokens` tokens of the source, copy on write."""

    source_kv_slot: int
    target_kv_slot: int
    num_tokens: int


SlotOp = FreeSlot | TruncateSlot | ForkSlot


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRequest:
    """What is wanted of one row; see `stagecoach.v1.LogitsRequest`."""

    row: int
    num_candidates: int
    min_mass: float | None = None
    min_gap: float | None = None
    temperature: float = 1.0
    token_ids: tuple[int, ...] = ()
    wants_unit_log_sum_exp: bool = False
    num_contenders: int = 0
    noise_key: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One micro-batch, valid for the stage that it is given to."""

    slices: tuple[SequenceSlice, ...]
    """A slot occurs at most once."""
    slot_ops: tuple[SlotOp, ...] = ()
    """Applied in order before the forward."""
    token_ids: torch.Tensor | None = None
    """int64 `[num_tokens]` on the CPU; for the first stage."""
    hidden_states: torch.Tensor | None = None
    """`[num_tokens, hidden_size]` on the CPU; for every other stage."""
    logits: tuple[LogitsRequest, ...] = ()
    """Rows of logits that are wanted; for the last stage."""

    @property
    def num_tokens(self) -> int:
        """Rows."""
        return sum(piece.num_tokens for piece in self.slices)

    @property
    def inputs(self) -> torch.Tensor:
        """Token ids or hidden states, whichever there are."""
        inputs = self.hidden_states if self.token_ids is None else self.token_ids
        assert inputs is not None, "the servicer checked the inputs"
        return inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRow:
    """Reduced logits of one row; see `stagecoach.v1.LogitsRow`."""

    row: int
    log_sum_exp: float
    candidate_ids: list[int]
    candidate_logits: list[float]
    token_logits: list[float]
    full: torch.Tensor | None = None
    """float32 `[vocab_size]` on the CPU."""
    unit_log_sum_exp: float | None = None
    contender_ids: Sequence[int] = ()
    contender_logits: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """The result of a micro-batch, on the CPU."""

    hidden_states: torch.Tensor | None = None
    """`[num_tokens, hidden_size]`; of every stage but the last."""
    logits: tuple[LogitsRow, ...] = ()
    """Reduced rows of logits in the order of the requests; of the last stage."""
