"""Outputs of one grammar that one process follows.

A process for each output costs a switch of processes and a frame each way for each token; together
their tokens go out and their masks come back in one. What goes wrong in company is nobody's until
it was tried alone: see `TokenConstraint`.
"""

import asyncio
from collections.abc import Callable, Sequence

from coordinator.constraint.messages import NewTokens, OutputState, decode_states, encode_tokens
from coordinator.sandbox import ProcessDiedError, SandboxError, SandboxProcess

MAX_MEMBERS = 32
"""Outputs in one process. Their masks are found one after another: some 20 us each as a rule."""

MASK_TIMEOUT_S = 5.0
"""Most seconds for what follows the tokens of one call. The compiler's limits bound the work to
some ten milliseconds a token; this is for a machine that is busy with other things."""

OnState = Callable[[OutputState | SandboxError], None]
"""Takes what may follow the tokens appended, or what became of the process."""


class OutputGroup:
    """The coordinator's end of one process. Event loop only.

    The process is ended when the last output leaves, and when anything goes wrong with it.

    Args:
        process: With a compiled grammar, at the start of an output; owned by this object.
    """

    def __init__(self, process: SandboxProcess) -> None:
        self._process = process
        self._members: dict[int, OnState] = {}
        self._num_joined = 0
        self._unsent: list[NewTokens] = []
        self._error: SandboxError | None = None

    @property
    def process_id(self) -> int | None:
        """Id of the process that follows the output."""
        return self._process.process_id

    @property
    def is_alive(self) -> bool:
        """True until all have left, or something went wrong."""
        return self._process.is_alive

    @property
    def has_room(self) -> bool:
        """True while one more may join."""
        return self.is_alive and len(self._members) < MAX_MEMBERS

    @property
    def had_company(self) -> bool:
        """True when no output can be blamed for what goes wrong in the process."""
        return self._num_joined > 1

    def join(self, on_state: OnState) -> int:
        """Takes a new output.

        Args:
            on_state: Called once for each `append`, until the output leaves.

        Returns:
            Its number.
        """
        number, self._num_joined = self._num_joined, self._num_joined + 1
        self._members[number] = on_state
        return number

    def append(self, number: int, token_ids: Sequence[int]) -> None:
        """Takes tokens of an output, at least one; goes out with those of the others."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(NewTokens(number, token_ids))

    def leave(self, number: int) -> None:
        """Gives up an output. May be called again."""
        if self._members.pop(number, None) is None:
            return
        if self._members:
            self.append(number, ())
        else:
            self._process.close()

    def _flush(self) -> None:
        news, self._unsent = self._unsent, []
        numbers = [one.output for one in news if one.token_ids]
        answer = self._process.submit(encode_tokens(news), timeout_s=MASK_TIMEOUT_S)
        answer.add_done_callback(lambda answer: self._land(numbers, answer))

    def _land(self, numbers: Sequence[int], answer: asyncio.Future[bytes]) -> None:
        try:
            states = decode_states(answer.result(), len(numbers))
        except SandboxError as error:
            self._lose(numbers, error)
        except ValueError as error:  # its memory may be what a client made of it
            self._lose(numbers, ProcessDiedError(f"it answered nonsense: {error}"))
        else:
            for number, state in zip(numbers, states, strict=True):
                self._tell(number, state)

    def _lose(self, numbers: Sequence[int], error: SandboxError) -> None:
        # The first one says what it was; those behind it hear only that the process has ended.
        self._error = self._error or error
        self._process.close()
        for number in numbers:
            self._tell(number, self._error)

    def _tell(self, number: int, state: OutputState | SandboxError) -> None:
        on_state = self._members.get(number)
        if on_state is not None:
            on_state(state)
