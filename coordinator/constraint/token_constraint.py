"""Which tokens may come next in one output that follows a grammar."""

import asyncio
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from coordinator.constraint.failure import failure, sandbox_failure
from coordinator.constraint.messages import (
    OutputState,
    Standing,
    decode_state,
    encode_token,
)
from coordinator.core.grammar import Grammar
from coordinator.sandbox import SandboxError, SandboxProcess
from protos.errors import StagecoachError

MASK_TIMEOUT_S = 5.0
"""Most seconds for what follows one token. The compiler's limits bound the work to some ten
milliseconds; this is for a machine that is busy with other things."""

_NONE = np.empty(0, dtype=np.int64)


class TokenConstraint:
    """Follows one output. Its state is that of the tokens appended, and of nothing else.

    What may follow a token is found by a process of this output's own, and is asked for as soon as
    the token is appended; `allowed_ids` and `is_complete` are known once it `is_ready`. Event loop
    only; the owner closes it.

    Args:
        process: At the start of an output; owned by this object.
        grammar: What it matches, for errors.
        state: What may follow at the start.
        vocab_size: Logits in a row.
        avoided_ids: Tokens that are taken only where nothing else is allowed: the end tokens of a
            request that ignores them.
        on_closed: Called once, when it is closed.
    """

    def __init__(
        self,
        process: SandboxProcess,
        grammar: Grammar,
        state: OutputState,
        *,
        vocab_size: int,
        avoided_ids: frozenset[int],
        on_closed: Callable[[], None],
    ) -> None:
        """Starts with no output."""
        self._process = process
        self._grammar = grammar
        self._state = state
        self._vocab_size = vocab_size
        self._avoided_ids = np.array(sorted(avoided_ids), dtype=np.int64)
        self._allowed_ids: npt.NDArray[np.int64] | None = None
        self._error: StagecoachError | None = None
        self._on_ready: Callable[[], None] | None = None
        self._on_closed: Callable[[], None] | None = on_closed
        self._num_pending = 0

    @property
    def is_ready(self) -> bool:
        """True when it is known what may follow the tokens appended."""
        return self._num_pending == 0

    def when_ready(self, on_ready: Callable[[], None]) -> None:
        """Calls back each time that it has become ready, until it is closed."""
        self._on_ready = on_ready

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64]:
        """Ids that may follow, rising; none once it is complete or broken."""
        assert self.is_ready, "what may follow is not known yet"
        if self._allowed_ids is None:
            self._allowed_ids = self._find_allowed_ids()
        return self._allowed_ids

    @property
    def is_complete(self) -> bool:
        """True when the output is whole and nothing can follow."""
        assert self.is_ready, "what may follow is not known yet"
        return self._state.standing is Standing.COMPLETE

    @property
    def error(self) -> StagecoachError:
        """Why nothing is allowed although the output is not complete."""
        return self._error or failure(self._grammar, self._state.error)

    def append(self, token_id: int) -> None:
        """Takes an allowed token of output, and asks what may follow it."""
        self._num_pending += 1
        answer = self._process.submit(encode_token(token_id), timeout_s=MASK_TIMEOUT_S)
        answer.add_done_callback(self._land)

    def close(self) -> None:
        """Ends the process. May be called again."""
        self._on_ready = None
        self._process.close()
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed()

    def _land(self, answer: asyncio.Future[bytes]) -> None:
        self._num_pending -= 1
        self._allowed_ids = None
        error = answer.exception()
        if error is None:
            self._state, _ = decode_state(answer.result())
        elif isinstance(error, SandboxError):
            self._state = OutputState.broken(str(error))
            self._error = sandbox_failure(self._grammar, error, limit_s=MASK_TIMEOUT_S)
        else:
            raise error
        if self._num_pending == 0 and self._on_ready is not None:
            self._on_ready()

    def _find_allowed_ids(self) -> npt.NDArray[np.int64]:
        if self._state.standing is not Standing.OPEN:
            return _NONE
        mask = np.frombuffer(self._state.mask, dtype=np.uint8)
        bits = np.unpackbits(mask, count=min(8 * len(mask), self._vocab_size), bitorder="little")
        allowed_ids = np.flatnonzero(bits.view(np.bool_))  # five times faster than of numbers
        if len(self._avoided_ids):
            others = np.setdiff1d(allowed_ids, self._avoided_ids, assume_unique=True)
            allowed_ids = others if len(others) else allowed_ids
        return allowed_ids
