"""A micro-batch inside a stage: ragged rows, what is done before them, and what is answered.

Plain data, made by the servicer from a validated message. The rows of all slices lie packed one
after another, never padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.contract.slot_ops import SlotOp


class SequenceSlice(NamedTuple):
    """Consecutive tokens of one sequence."""

    kv_slot: int
    start_position: int
    """Position of the first token in its sequence."""
    num_tokens: int
    """Tokens to compute, at least 1."""

    @property
    def is_single_token(self) -> bool:
        """True for one token, for which a stage has kernels and graphs of its own.

        Most such slices are decodes, and those kernels and graphs are named after decoding. But the
        last token of a prompt may be a slice too, and a decode with drafts has several tokens.
        Which rows are sampled only the last stage is told.
        """
        return self.num_tokens == 1

    @property
    def end_position(self) -> int:
        """One past the last position; the tokens the slot holds after the forward."""
        return self.start_position + self.num_tokens


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
    prompt_logits: tuple[PromptLogitsRequest, ...] = ()
    """Rows whose next tokens are known, rising, none of them twice; for the last stage."""
    hidden_sums: tuple[HiddenSumRequest, ...] = ()
    """Rows whose final hidden states are added up, rising, none of them twice; for the last
    stage."""

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
    """Reduced logits of one row, to be written as a `stagecoach.v1.LogitsRow`."""

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
class PromptLogits:
    """Reduced logits of rows of a prompt, to be written as `stagecoach.v1.PromptLogits`.

    All tensors are on the CPU, and all logits are less the highest of their row.
    """

    first_row: int
    log_sum_exps: torch.Tensor
    """float32 `[num_rows]`."""
    token_logits: torch.Tensor
    """float32 `[num_rows]`, those of the next tokens."""
    token_ranks: torch.Tensor
    """int64 `[num_rows]`, from 1 on."""
    candidate_ids: torch.Tensor
    """int64 `[num_rows, num_candidates]`, by falling logit, equal logits by rising id."""
    candidate_logits: torch.Tensor
    """float32 `[num_rows, num_candidates]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenSum:
    """The sum of final hidden states of rows, to be written as a `stagecoach.v1.HiddenSum`."""

    first_row: int
    sum: torch.Tensor
    """float32 `[hidden_size]` on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """The result of a micro-batch, on the CPU."""

    hidden_states: torch.Tensor | None = None
    """`[num_tokens, hidden_size]`; of every stage but the last."""
    logits: tuple[LogitsRow, ...] = ()
    """Reduced rows of logits in the order of the requests; of the last stage."""
    prompt_logits: tuple[PromptLogits, ...] = ()
    """Reduced rows of prompts in the order of the requests; of the last stage."""
    hidden_sums: tuple[HiddenSum, ...] = ()
    """Sums of hidden states in the order of the requests; of the last stage."""
