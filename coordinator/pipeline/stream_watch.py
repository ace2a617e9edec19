"""The unanswered micro-batches of one stream, and when its stage counts as dead.

A stage runs one micro-batch after the other, so only the first unanswered micro-batch can be
late. Pure; the link brings the clock and the looks at the connection.
"""

from coordinator.pipeline.channel_socket import ConnectionState
from coordinator.pipeline.liveness import LATE_FACTOR, STILL, Liveness, TurnMeter, own_time_s
from coordinator.pipeline.step_deadline import StepDeadline
from stagecoach.contract.errors import DeadlineExceededError, UnavailableError

REST_BYTES = 1 << 16
"""Bytes of a micro-batch besides its hidden states: about what it has on the wire."""


class StreamWatch:
    """Watches one stream, from its opening on. Times are of one monotonic clock, in seconds.

    Args:
        deadline: What is known of how long the stage takes; goes on from stream to stream.
        keepalive_s: As `Liveness` takes it.
        num_token_bytes: Most bytes of the hidden states of one token.
        now_s: When the stream opened.
    """

    def __init__(
        self, deadline: StepDeadline, *, keepalive_s: float, num_token_bytes: int, now_s: float
    ) -> None:
        deadline.restart()
        self._deadline = deadline
        self._liveness = Liveness(keepalive_s)
        self._num_token_bytes = num_token_bytes
        self._turn = TurnMeter()
        self._looked_s = now_s
        self._unanswered: dict[int, int] = {}
        """Tokens of each micro-batch, in order; one that was given up keeps the stage busy too."""

    @property
    def unanswered(self) -> frozenset[int]:
        """Ids of the micro-batches that the stage was sent and has not answered."""
        return frozenset(self._unanswered)

    def send(self, micro_batch_id: int, num_tokens: int, now_s: float) -> None:
        """Takes in that a micro-batch is about to be written."""
        self._unanswered[micro_batch_id] = num_tokens
        if len(self._unanswered) == 1:
            self._begin_turn(now_s)

    def answer(self, micro_batch_id: int, now_s: float) -> None:
        """Takes in that the stage has answered, and learns from how long it took."""
        num_tokens = self._unanswered.pop(micro_batch_id, None)
        if num_tokens is not None:
            self._deadline.observe(num_tokens, self._turn.end(now_s))
        self._begin_turn(now_s)

    def look(
        self, state: ConnectionState | None, now_s: float
    ) -> UnavailableError | DeadlineExceededError | None:
        """Takes in a look at the connection; call it every `WATCH_PERIOD_S`.

        Args:
            state: None when it is closed or cannot be looked at; only the deadline counts then.
            now_s: When it was looked at.

        Returns:
            Why the stage counts as dead, and the stream has to be given up; None while it lives. A
            micro-batch that is late doubles the margin of the next.
        """
        elapsed_s, self._looked_s = own_time_s(self._looked_s, now_s), now_s
        moved = STILL
        if state is not None:
            moved = self._liveness.look(state, elapsed_s)
            if (problem := self._liveness.problem) is not None:
                return UnavailableError(problem)
        for num_tokens in self._unanswered.values():  # the first of them has its turn
            limit_s = self._deadline.limit_s(num_tokens)
            waited_s = self._turn.look(now_s, moved)
            if self._turn.has_heard and self._liveness.is_answering:
                limit_s *= LATE_FACTOR
            if waited_s <= limit_s:
                return None
            self._deadline.alarm()
            return DeadlineExceededError(
                f"{num_tokens} tokens were not answered in time, {limit_s:.1f} s"
            )
        return None

    def _begin_turn(self, now_s: float) -> None:
        """Begins the turn of the first micro-batch that is not answered, if there is one."""
        for num_tokens in self._unanswered.values():
            self._turn.begin(now_s, num_tokens * self._num_token_bytes + REST_BYTES)
            return
