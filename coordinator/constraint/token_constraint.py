"""Which tokens may come next in one output that follows a grammar."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coordinator.constraint.failure import failure, killed, sandbox_failure
from coordinator.constraint.mask_reader import MaskReader
from coordinator.constraint.messages import OutputState, Standing
from coordinator.constraint.output_group import MASK_TIMEOUT_S, OutputGroup
from coordinator.core.grammar import Grammar
from coordinator.sandbox import MAX_KILLED, ProcessKilledError, SandboxError
from stagecoach.contract.errors import StagecoachError

_NONE = np.empty(0, dtype=np.int64)


class Begin(Protocol):
    """Starts an output anew."""

    def __call__(self, *, alone: bool) -> Awaitable[OutputGroup]:
        """Finds a process at the start of the output, which joins it at once.

        Args:
            alone: No other output follows or will follow there.

        Raises:
            StagecoachError: There is none.
        """


class TokenConstraint:
    """Follows one output. Its state is that of the tokens appended, and of nothing else.

    What may follow a token is found by another process, and is asked for as soon as the token is
    appended; `allowed_ids` and `is_complete` are known once it `is_ready`. The process follows
    other outputs of the grammar too. When it crashes, takes too long or finds the grammar broken,
    each of them is tried again in a process of its own, so that a fault hits the output that has it
    and no other. When it is killed from outside, which is nobody's fault, all go on in another that
    they share; one whose process is killed again before it answered goes on alone. Event loop only;
    the owner closes it.

    Args:
        group: Has room for one more.
        grammar: What it matches, for errors.
        state: What may follow at the start.
        relaxed_fields: Fields of the request with schemas that the output is not held to.
        masks: Reads what may follow.
        begin: Starts the output anew.
        on_fault: Called when something that was not the end of a process from outside went wrong
            where other outputs were followed too.
        on_closed: Called once, when it is closed.
    """

    def __init__(
        self,
        group: OutputGroup,
        grammar: Grammar,
        state: OutputState,
        *,
        relaxed_fields: tuple[str, ...] = (),
        masks: MaskReader,
        begin: Begin,
        on_fault: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._group = group
        self._number = group.join(self._take)
        self._grammar = grammar
        self._relaxed_fields = relaxed_fields
        self._state = state
        self._masks = masks
        self._begin = begin
        self._on_fault = on_fault
        self._moving: asyncio.Task[None] | None = None
        self._token_ids = array("I")
        self._num_pending = 0
        self._num_killed = 0
        """Processes that were killed since it was last known what may follow."""
        self._error: StagecoachError | None = None
        self._on_ready: Callable[[], None] | None = None
        self._on_closed: Callable[[], None] | None = on_closed

    @property
    def relaxed_fields(self) -> tuple[str, ...]:
        """Fields of the request with schemas that the output is not held to."""
        return self._relaxed_fields

    @property
    def is_ready(self) -> bool:
        """True when it is known what may follow the tokens appended."""
        return self._num_pending == 0

    @property
    def process_id(self) -> int | None:
        """Id of the process that follows the output."""
        return self._group.process_id

    def when_ready(self, on_ready: Callable[[], None]) -> None:
        """Calls back each time that it has become ready, until it is closed."""
        self._on_ready = on_ready

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64]:
        """Ids that may follow, rising; none once it is complete or broken. Not to be written to."""
        assert self.is_ready, "what may follow is not known yet"
        if self._state.standing is not Standing.OPEN:
            return _NONE
        return self._masks.read(self._state.mask)

    @property
    def is_complete(self) -> bool:
        """True when the output is whole and nothing can follow."""
        assert self.is_ready, "what may follow is not known yet"
        return self._state.standing is Standing.COMPLETE

    @property
    def error(self) -> StagecoachError:
        """Why nothing is allowed although the output is not complete."""
        return self._error or failure(self._grammar, self._state.error, self._state.field)

    def append(self, token_id: int) -> None:
        """Takes an allowed token of output, and asks what may follow it."""
        self._token_ids.append(token_id)
        if self._moving is None:
            self._num_pending += 1
            self._group.append(self._number, (token_id,))

    def close(self) -> None:
        """Gives up the output. May be called again."""
        self._on_ready = None
        if self._moving is not None:
            self._moving.cancel()
        self._group.leave(self._number)
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed()

    def _take(self, state: OutputState | SandboxError) -> None:
        """Hears what may follow, or that the process has failed."""
        if isinstance(state, OutputState) and state.standing is not Standing.BROKEN:
            self._settle(state)
        elif isinstance(state, ProcessKilledError):
            self._num_killed += 1
            if self._num_killed < MAX_KILLED:
                self._move(alone=self._num_killed > 1)
            else:
                self._fail(killed())
        elif self._group.had_company:
            self._on_fault()
            self._move(alone=True)
        elif isinstance(state, OutputState):
            self._settle(state)
        else:
            self._fail(
                sandbox_failure(self._grammar, state, work="followed", limit_s=MASK_TIMEOUT_S)
            )

    def _settle(self, state: OutputState) -> None:
        self._num_killed = 0
        self._state = state
        self._num_pending -= 1
        if self._num_pending == 0 and self._on_ready is not None:
            self._on_ready()

    def _fail(self, error: StagecoachError) -> None:
        self._error = error
        self._settle(OutputState.broken(error.message))

    def _move(self, *, alone: bool) -> None:
        """Begins again, with all tokens at once; nothing else is pending then."""
        self._group.leave(self._number)
        self._num_pending = 1
        self._moving = asyncio.create_task(self._begin_again(alone=alone), name="output anew")

    async def _begin_again(self, *, alone: bool) -> None:
        try:
            self._group = await self._begin(alone=alone)
        except StagecoachError as error:
            self._fail(error)
        else:
            self._number = self._group.join(self._take)
            self._group.append(self._number, self._token_ids[:])
        finally:
            self._moving = None
