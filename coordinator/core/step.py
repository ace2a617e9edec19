"""One step as plain data: what the scheduler decided, what the pipeline did, how long it took."""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import NamedTuple

from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.contract.slot_ops import SlotOp
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StageVisit


class PromptRows(NamedTuple):
    """Rows of a slice, one after another, of which it is asked how likely their next tokens are."""

    first_row: int
    """First of them, counted from the first of the slice."""
    next_token_ids: ListLike[int]
    """The token of the prompt that comes after each of the rows; at least one."""
    num_top: int
    """Most likely tokens that are wanted beside each."""


class PooledRows(NamedTuple):
    """Rows of a slice, one after another, whose final hidden states are added up."""

    first_row: int
    """First of them, counted from the first of the slice."""
    num_rows: int
    """At least one."""


class ScheduledSlice(NamedTuple):
    """Consecutive tokens of one sequence that run in a micro-batch."""

    request_id: str
    kv_slot: int
    start_position: int
    token_ids: tuple[int, ...]
    """The tokens to run; at least one. Those that are only guessed, drafts, are the last ones."""
    num_sampled_rows: int
    """Rows, the last ones, whose logits a next token is sampled from: 0 when the slice ends before
    its sequence does, 1 when it ends with it, and 1 more for each draft."""
    prompt_rows: PromptRows | None = None
    """Rows whose log-probabilities the request wants and does not have yet."""
    pooled_rows: PooledRows | None = None
    """Rows whose hidden states the request's embedding is made of, and does not have yet."""

    @property
    def is_decode(self) -> bool:
        """True when a token is sampled from every row. All other slices are prefill.

        This is what the coordinator calls a decode. It has one token, and one more for each draft.
        """
        return self.num_sampled_rows == len(self.token_ids)

    @property
    def num_drafts(self) -> int:
        """How many of the tokens are only guessed."""
        return max(0, self.num_sampled_rows - 1)

    @property
    def draft_token_ids(self) -> tuple[int, ...]:
        """The tokens that are only guessed, each of which follows the one before it."""
        return self.token_ids[len(self.token_ids) - self.num_drafts :]

    def num_computed_tokens(self, num_sampled_tokens: int) -> int:
        """Tokens of the slice whose KV is that of the sequence: all but the drafts that failed.

        Args:
            num_sampled_tokens: Tokens that were sampled from its rows and kept. All but the last
                of them are drafts that proved right.
        """
        if self.num_sampled_rows <= 1:
            return len(self.token_ids)
        return len(self.token_ids) - self.num_sampled_rows + max(1, num_sampled_tokens)


class TokenCounts(NamedTuple):
    """The rows of a micro-batch."""

    num_prefill_tokens: int
    """Rows of all other slices: prompts, and what is computed again."""
    num_decode_tokens: int
    """Rows of the slices that decode; see `ScheduledSlice.is_decode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOutput:
    """One micro-batch, decided. Empty slices with slot operations are allowed."""

    micro_batch_id: int
    slices: tuple[ScheduledSlice, ...]
    slot_ops: tuple[SlotOp, ...]
    """What every stage does, in order, before the forward. They may free the slots of `slices`,
    when a slot changed hands."""

    @property
    def num_tokens(self) -> int:
        """Rows of the micro-batch."""
        return sum(len(piece.token_ids) for piece in self.slices)

    def prompt_logits(self) -> list[PromptLogitsRequest]:
        """What the last stage is asked of prompts: the `prompt_rows` of all slices, in order."""
        requests = []
        row = 0
        for piece in self.slices:
            if piece.prompt_rows is not None:
                first_row, token_ids, num_top = piece.prompt_rows
                requests.append(
                    PromptLogitsRequest(
                        first_row=row + first_row, token_ids=token_ids, num_candidates=num_top
                    )
                )
            row += len(piece.token_ids)
        return requests

    def hidden_sums(self) -> list[HiddenSumRequest]:
        """What the last stage is to add up: the `pooled_rows` of all slices, in order."""
        requests = []
        row = 0
        for piece in self.slices:
            if piece.pooled_rows is not None:
                first_row, num_rows = piece.pooled_rows
                requests.append(HiddenSumRequest(first_row=row + first_row, num_rows=num_rows))
            row += len(piece.token_ids)
        return requests

    @property
    def num_drafts(self) -> int:
        """Rows that are only guessed."""
        return sum(piece.num_drafts for piece in self.slices)

    @property
    def is_prefill_only(self) -> bool:
        """True when it holds prompts, or pieces of them, and nothing else."""
        return bool(self.slices) and not any(piece.is_decode for piece in self.slices)

    def count_tokens(self) -> TokenCounts:
        """Counts the rows by what they are for, in one pass."""
        num_prefill_tokens = num_decode_tokens = 0
        for piece in self.slices:
            if piece.is_decode:
                num_decode_tokens += len(piece.token_ids)
            else:
                num_prefill_tokens += len(piece.token_ids)
        return TokenCounts(num_prefill_tokens, num_decode_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsRow:
    """Raw logits of one row, reduced, as read from a `stagecoach.v1.LogitsRow`.

    Logits are float32 values. `full` is a float32 buffer, so that it costs no copy; where they are
    many, the ids and logits of the others are buffers too.
    """

    row: int
    log_sum_exp: float
    """log(sum(exp((logits - highest) / temperature))) over the whole row; not finite when the row
    has NaN or infinities."""
    candidate_ids: ListLike[int]
    """Token ids by falling logit, equal logits by rising id; empty when `full` is set."""
    candidate_logits: ListLike[float]
    token_logits: ListLike[float]
    """Logits of `LogitsRequest.token_ids`; empty when `full` is set."""
    full: ListLike[float] | None = None
    """The whole row `[vocab_size]`, a buffer."""
    unit_log_sum_exp: float | None = None
    """`log_sum_exp` at temperature 1, when it was asked for."""
    contender_ids: ListLike[int] = ()
    """Token ids, as many as were asked for; empty when `full` is set."""
    contender_logits: ListLike[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogits:
    """Reduced logits of rows of a prompt, as read from a `stagecoach.v1.PromptLogits`.

    All sequences are flat buffers: of float32, and of unsigned 32-bit numbers. All logits are less
    the highest of their row.
    """

    log_sum_exps: ListLike[float]
    """log(sum(exp(logits))) over each whole row; not finite when the row has NaN or infinities."""
    token_logits: ListLike[float]
    """Logits of the next tokens."""
    token_ranks: ListLike[int]
    """Their places by falling logit, from 1 on, equal logits by rising id."""
    candidate_ids: ListLike[int]
    """As many of each row as were asked for, by falling logit, equal logits by rising id."""
    candidate_logits: ListLike[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What came back from the last stage."""

    micro_batch_id: int
    logits: tuple[LogitsRow, ...]
    visits: tuple[StageVisit, ...]
    """Visits to the stages, in pipeline order."""
    stage_timings: tuple[StageTimings[int], ...]
    """Times at each stage, in pipeline order. `serialize_ns` counts the stage's and the
    coordinator's, so each adds up to the round trip and what the coordinator did for it before and
    after."""
    prompt_logits: tuple[PromptLogits, ...] = ()
    """Answers to `SchedulerOutput.prompt_logits`, in their order."""
    hidden_sums: tuple[ListLike[float], ...] = ()
    """Answers to `SchedulerOutput.hidden_sums`, in their order: buffers of float32,
    `[hidden_size]`. They are not finite where the hidden states are not."""
