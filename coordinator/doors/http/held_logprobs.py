"""Log-probabilities and embeddings that answers hold until they are whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coordinator.core.events import TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.doors.embedding import Embedded
from stagecoach.contract.errors import QueueFullError

MAX_HELD_BYTES = 128 << 20
"""Most bytes of the log-probabilities and embeddings of all whole answers at once: one choice of
380 000 tokens with twenty others each, or 8 192 embeddings of 4 096 numbers."""

Hold = Callable[[TokensEvent | PromptLogprobs | Embedded], None]


class HeldLogprobs:
    """Counts what whole answers hold. Event loop only."""

    def __init__(self) -> None:
        self._num_bytes = 0

    @contextmanager
    def answer(self) -> Iterator[Hold]:
        """Lets one answer hold the log-probabilities of events, or embeddings, inside the block.

        What it is given raises QueueFullError when all answers together would hold too many.
        """
        num_own_bytes = 0

        def hold(event: TokensEvent | PromptLogprobs | Embedded) -> None:
            nonlocal num_own_bytes
            num_bytes = (
                sum(one.num_bytes for one in event.logprobs)
                if isinstance(event, TokensEvent)
                else event.num_bytes
            )
            if self._num_bytes + num_bytes > MAX_HELD_BYTES:
                raise QueueFullError(
                    f"this answer and others hold {self._num_bytes} bytes of logprobs and"
                    f" embeddings, at most {MAX_HELD_BYTES} may be held at once: ask for fewer, or"
                    " stream what can be streamed",
                    limit=MAX_HELD_BYTES,
                )
            num_own_bytes += num_bytes
            self._num_bytes += num_bytes

        try:
            yield hold
        finally:
            self._num_bytes -= num_own_bytes
