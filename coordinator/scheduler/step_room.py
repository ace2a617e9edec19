"""The room that is left in a micro-batch while it is being filled."""

from coordinator.core.sequence import Sequence
from coordinator.scheduler.load import StepBudget


class StepRoom:
    """Counts tokens, decodes and prefill tokens down. Decodes are taken first.

    Args:
        num_tokens: Tokens that the micro-batch may hold.
        budget: What else limits it; None when nothing does.
    """

    def __init__(self, num_tokens: int, budget: StepBudget | None) -> None:
        self._num_tokens = num_tokens
        self.num_decodes = num_tokens
        """Sequences that may still decode."""
        self._num_prefill_tokens = num_tokens
        if budget is not None:
            self.num_decodes = min(num_tokens, budget.max_num_decodes)
            self._num_prefill_tokens = budget.max_num_prefill_tokens

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of prompts that fit; a sequence may be admitted while there are any."""
        return min(self._num_tokens, self._num_prefill_tokens)

    def take_decode(self) -> None:
        """Takes the room that one decode was promised: one of `num_decodes`, and one token."""
        self.num_decodes -= 1
        self._num_tokens -= 1

    def take(self, sequence: Sequence, most: int | None = None) -> int:
        """Tokens that a sequence gets; a decode counts as prefill only when decodes are full.

        Args:
            sequence: With tokens to compute.
            most: It gets no more than these. None: as many as fit.
        """
        if sequence.is_decoding and self.num_decodes > 0:
            self.take_decode()
            return 1
        num_tokens = min(sequence.num_uncomputed_tokens, self.num_prefill_tokens)
        if most is not None:
            num_tokens = min(num_tokens, most)
        self._num_prefill_tokens -= num_tokens
        self._num_tokens -= num_tokens
        self.num_decodes = min(self.num_decodes, self._num_tokens)
        return num_tokens
