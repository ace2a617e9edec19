"""The progress of a request: its tokens, and how many of them the stages hold KV for."""

from dataclasses import dataclass, field
from enum import Enum

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
    kv_slot: int | None = None
    """Slot on every stage; set exactly while running."""
    in_flight: bool = False
    """True from `schedule()` to `update()`; such a sequence is not scheduled again."""
    finish_reason: FinishReason | None = None
    """Set exactly when finished, or when it is to be swept at the next step boundary."""
    num_preemptions: int = 0

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens still to be run through the stages."""
        return self.num_tokens - self.num_computed_tokens

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens `[start, end)` of prompt and output together."""
        num_prompt = self.num_prompt_tokens
        ids = list(self.request.prompt_token_ids[start:end])
        if end > num_prompt:
            ids += self.output_token_ids[max(0, start - num_prompt) : end - num_prompt]
        return ids
