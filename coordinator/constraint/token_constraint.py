"""Which tokens may come next in one output that follows a grammar."""

import llguidance
import numpy as np
import numpy.typing as npt

from coordinator.constraint.failure import NO_TOKEN, failure
from coordinator.core.grammar import Grammar
from protos.errors import InvalidArgumentError


class TokenConstraint:
    """Follows one output. Its state is that of the tokens appended, and of nothing else.

    A mask takes some ten microseconds as a rule; the limits of the compiler bound it to some ten
    milliseconds. Not thread-safe.

    Args:
        matcher: At the start of an output; owned by this object.
        grammar: What it matches, for errors.
        vocab_size: Logits in a row.
        avoided_ids: Tokens that are taken only where nothing else is allowed: the end tokens of a
            request that ignores them.
    """

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        grammar: Grammar,
        *,
        vocab_size: int,
        avoided_ids: frozenset[int],
    ) -> None:
        """Starts with no output."""
        self._matcher = matcher
        self._grammar = grammar
        self._vocab_size = vocab_size
        self._avoided_ids = np.array(sorted(avoided_ids), dtype=np.int64)
        self._allowed_ids: npt.NDArray[np.int64] | None = None

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64]:
        """Ids that may follow, rising; none once it is complete or broken."""
        if self._allowed_ids is None:
            self._allowed_ids = self._find_allowed_ids()
        return self._allowed_ids

    @property
    def is_complete(self) -> bool:
        """True when the output is whole and nothing can follow."""
        matcher = self._matcher
        return matcher.is_stopped() and matcher.is_accepting() and not matcher.is_error()

    @property
    def error(self) -> InvalidArgumentError:
        """Why nothing is allowed although the output is not complete."""
        if self._matcher.is_error():
            return failure(self._grammar, self._matcher.get_error())
        return failure(self._grammar, NO_TOKEN)

    def append(self, token_id: int) -> None:
        """Takes an allowed token of output."""
        self._matcher.consume_token(token_id)
        self._allowed_ids = None

    def _find_allowed_ids(self) -> npt.NDArray[np.int64]:
        if self._matcher.is_stopped():
            return np.empty(0, dtype=np.int64)
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(mask, count=min(8 * len(mask), self._vocab_size), bitorder="little")
        if self._matcher.is_error():
            return np.empty(0, dtype=np.int64)
        allowed_ids = np.flatnonzero(bits.view(np.bool_))  # five times faster than of numbers
        if len(self._avoided_ids):
            others = np.setdiff1d(allowed_ids, self._avoided_ids, assume_unique=True)
            allowed_ids = others if len(others) else allowed_ids
        return allowed_ids
