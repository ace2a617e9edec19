"""The progress of a request: its tokens, and how many of them the stages hold KV for."""

from dataclasses import dataclass, field
from enum import Enum

from coordinator.core.drafter import Drafter
from coordinator.core.limits import MAX_BLAMES
from coordinator.core.request import FinishReason, Request


class SequenceState(Enum):
    """Where a sequence is. A preempted sequence is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Mutable state of one request; only the scheduler's owner changes it.

    There is no prefill and no decode: `num_computed_tokens` catches up with `num_tokens`. A step
    that reaches it produces logits for the next token.
    """

    request: Request
    state: SequenceState = SequenceState.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    """Generated tokens, in order; kept through preemption."""
    num_computed_tokens: int = 0
    """Tokens, from the start, whose KV every stage holds. 0 without a slot."""
    drafter: Drafter | None = None
    """Guesses its next tokens; None where none may be guessed."""
    kv_slot: int | None = None
    """Slot on every stage; set exactly while running."""
    is_held: bool = False
    """True while it is not known which token may follow its last: it is not scheduled meanwhile."""
    micro_batch_id: int | None = None
    """The micro-batch it is in, from `schedule()` until that one comes back or is given up."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Names of its first full blocks, as many as were asked for so far; see `PrefixIndex`."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were not computed, because a slot held them when it was first
    admitted."""
    num_known_logprobs: int = 0
    """Tokens of the prompt, from the second on, whose log-probabilities have come back; kept
    through preemption, so that each is taken once. 0 where none are wanted."""
    num_pooled_tokens: int = 0
    """Tokens of the prompt whose hidden states have come back for its embedding; kept through
    preemption, so that each is taken once. 0 where none is wanted."""
    finish_reason: FinishReason | None = None
    """Set exactly when finished, or when it is to be swept at the next step boundary."""
    rank: tuple[int, ...] = ()
    """What the policy said when it last began to wait; the lowest goes first."""
    arrival: int = 0
    """Its age among the sequences of one scheduler: the lowest is the oldest."""
    num_passes: int = 0
    """Junior sequences that were admitted while it was the most senior that waited."""
    lacks_memory: bool = False
    """True when it waits because its tokens did not fit the KV memory."""
    num_preemptions: int = 0
    """Times it gave up its KV to others."""
    num_replays: int = 0
    """Times it lost its KV to a fault, and is computed again."""
    num_blames: int = 0
    """Micro-batches lost with it inside since its last token; bounded by the owner of the
    scheduler."""

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    @property
    def in_flight(self) -> bool:
        """True while it is in a micro-batch; such a sequence is not scheduled again."""
        return self.micro_batch_id is not None

    @property
    def is_suspect(self) -> bool:
        """True when it has to run alone, to see whether it is what breaks the stages."""
        return self.num_blames >= MAX_BLAMES

    @property
    def has_returned(self) -> bool:
        """True once it has gone back to waiting, because it gave up or lost its KV."""
        return self.num_preemptions + self.num_replays > 0

    @property
    def seniority(self) -> tuple[tuple[int, ...], int]:
        """Rank and age among the sequences of one scheduler: the lowest is the most senior."""
        return self.rank, self.arrival

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    @property
    def lacks_logprobs(self) -> bool:
        """True while log-probabilities of the prompt are wanted that have not come back."""
        return (
            self.request.prompt_logprobs is not None
            and self.num_known_logprobs < self.num_prompt_tokens - 1
        )

    @property
    def next_pooled_position(self) -> int | None:
        """Position of the first token whose hidden state is wanted and has not come back.

        None where there is none.
        """
        embedding = self.request.embedding
        if embedding is None:
            return None
        position = embedding.first_position(self.num_prompt_tokens) + self.num_pooled_tokens
        return position if position < self.num_prompt_tokens else None

    @property
    def num_skippable_tokens(self) -> int:
        """Tokens, from the start, that need not run where their KV is there.

        The last one must run for its logits, and so must every token of the prompt at whose place a
        log-probability or a hidden state is wanted that has not come back.
        """
        num_tokens = self.num_known_logprobs if self.lacks_logprobs else self.num_tokens - 1
        first_pooled = self.next_pooled_position
        return num_tokens if first_pooled is None else min(num_tokens, first_pooled)

    @property
    def max_num_tokens(self) -> int:
        """Tokens whose KV it may ever need; that of the last output token is never computed."""
        return len(self.request.prompt_token_ids) + max(self.request.max_tokens, 1) - 1

    @property
    def num_draftable_tokens(self) -> int:
        """Guessed tokens that may run beside the newest one: the last of the output never runs."""
        return self.max_num_tokens - self.num_tokens

    @property
    def at_max_tokens(self) -> bool:
        """True once the output is as long as the request allows."""
        return len(self.output_token_ids) >= self.request.max_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens still to be run through the stages."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """True when only the newest token is still to be run.

        The slice that runs it, alone or with drafts, is a decode: see `ScheduledSlice.is_decode`.
        """
        return self.num_tokens - self.num_computed_tokens == 1

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens `[start, end)` of prompt and output together."""
        prompt = self.request.prompt_token_ids
        if start >= len(prompt):
            return self.output_token_ids[start - len(prompt) : end - len(prompt)]
        return [*prompt[start:end], *self.output_token_ids[: max(0, end - len(prompt))]]
