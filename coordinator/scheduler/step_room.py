"""The room that is left in a micro-batch while it is being filled."""

from coordinator.core.sequence import Sequence
from coordinator.scheduler.load import StepBudget


class StepRoom:
    """Counts tokens, decodes and prefill tokens down.

    Args:
        num_tokens: Tokens that the micro-batch may hold.
        budget: What else limits it; None when nothing does.
    """

    def __init__(self, num_tokens: int, budget: StepBudget | None) -> None:
        """Starts empty."""
        self._num_tokens = num_tokens
        self._num_decodes = num_tokens if budget is None else budget.max_num_decodes
        self._num_prefill_tokens = num_tokens if budget is None else budget.max_num_prefill_tokens

    @property
    def is_full(self) -> bool:
        """True when no sequence fits any more."""
        return self._num_tokens == 0 or (self._num_decodes == 0 and self._num_prefill_tokens == 0)

    @property
    def has_prefill(self) -> bool:
        """True while a sequence may be admitted."""
        return self._num_tokens > 0 and self._num_prefill_tokens > 0

    def fits(self, sequence: Sequence) -> bool:
        """True when a running sequence may have at least one token in."""
        if sequence.num_uncomputed_tokens == 1:
            return self._num_decodes > 0
        return self._num_prefill_tokens > 0

    def take(self, sequence: Sequence) -> int:
        """Tokens that a sequence gets; one that is new counts as prefill when decodes are full."""
        num_tokens = sequence.num_uncomputed_tokens
        if num_tokens == 1 and self._num_decodes > 0:
            self._num_decodes -= 1
        else:
            num_tokens = min(num_tokens, self._num_tokens, self._num_prefill_tokens)
            self._num_prefill_tokens -= num_tokens
        self._num_tokens -= num_tokens
        return num_tokens
