"""When a stage that does not answer is dead, and when it or the way to it is only slow.

Three clocks run, all of them only while this process runs itself:
- unreachable: bytes are on their way and the stage's kernel acknowledges none;
- silent: nothing comes from the stage. gRPC pings a link on which nothing comes, so a process that
  lives says something every few seconds;
- late: the micro-batch whose turn it is has no answer.
Bytes that move turn the last two clocks back, since pings and answers wait behind those bytes. A
process that stands still cannot turn them back for long: its kernel acknowledges no more than fits
into its buffers, and for a micro-batch no more than its own bytes count. Pure; the link brings
clock and socket.
"""

from typing import NamedTuple

from coordinator.pipeline.channel_socket import ConnectionState

WATCH_PERIOD_S = 0.25
"""How often a link is looked at."""

SLOWEST_BYTES_PER_S = 8192.0
"""A link that moves less counts as still: so many bytes turn a clock back by one second."""

PINGS_PER_KEEPALIVE = 2.5
"""So often is a link pinged on which nothing comes, for an answer to be here before it is dead."""

LATE_FACTOR = 3.0
"""A process that answers pings is not frozen but starved, or its model thread hangs: its step may
take so many times as long."""

NUM_ROUND_TRIPS = 8
"""A kernel has as many times what it usually takes for an acknowledgement, if that is longer."""


class Movement(NamedTuple):
    """What a connection did between two looks."""

    num_acked_bytes: int = 0
    num_received_bytes: int = 0
    has_unread: bool = False
    """True when something is here that this process has not read: it is the late one."""


STILL = Movement()
"""Also of a connection that cannot be looked at."""


def own_time_s(looked_s: float, now_s: float) -> float:
    """What of the time between two looks counts: not what this process was stopped or starved."""
    return min(now_s - looked_s, 2 * WATCH_PERIOD_S)


class Liveness:
    """Watches the connection of one stream.

    Args:
        keepalive_s: Nothing may come for twice as long. What is on its way may stay unacknowledged
            for one and a half times as long, so that TCP, which tries again after ever longer
            pauses, has tried after an outage of half that time.
    """

    def __init__(self, keepalive_s: float) -> None:
        self._keepalive_s = keepalive_s
        self._last: ConnectionState | None = None
        self._unreachable_s = 0.0
        self._silent_s = 0.0

    def look(self, state: ConnectionState, elapsed_s: float) -> Movement:
        """Takes in a look at the connection.

        Args:
            state: What it is like now.
            elapsed_s: Since the look before, in own time.
        """
        last, self._last = self._last, state
        if last is None:
            return STILL
        moved = Movement(
            num_acked_bytes=state.num_acked_bytes - last.num_acked_bytes,
            num_received_bytes=state.num_received_bytes - last.num_received_bytes,
            has_unread=state.num_unread_bytes > 0,
        )
        if state.num_queued_bytes > 0:
            self._unreachable_s = min(self._unreachable_s + elapsed_s, state.since_heard_s)
        else:
            self._unreachable_s = 0.0
        if moved.num_received_bytes or moved.has_unread:
            self._silent_s = 0.0
        else:
            back_s = moved.num_acked_bytes / SLOWEST_BYTES_PER_S
            self._silent_s = max(0.0, self._silent_s + elapsed_s - back_s)
        return moved

    @property
    def is_answering(self) -> bool:
        """True when something came after the last ping but one, or what goes up still moves."""
        return (
            self._last is not None and self._silent_s < 2 * self._keepalive_s / PINGS_PER_KEEPALIVE
        )

    @property
    def problem(self) -> str | None:
        """Why the stage counts as dead; None while it lives."""
        if self._last is None:
            return None
        limit_s = max(1.5 * self._keepalive_s, NUM_ROUND_TRIPS * self._last.round_trip_s)
        if self._unreachable_s > limit_s:
            return f"its machine acknowledged nothing for {self._unreachable_s:.1f} s"
        if self._silent_s > 2 * self._keepalive_s:
            return f"nothing came from it for {self._silent_s:.1f} s, not even answers to pings"
        return None


class TurnMeter:
    """Measures how long the micro-batch whose turn it is keeps the link waiting."""

    def __init__(self) -> None:
        self._looked_s = 0.0
        self._waited_s = 0.0
        self._longest_s = 0.0
        self._num_unacked_bytes = 0
        self.has_heard = False
        """True when something came since the turn began."""

    def begin(self, now_s: float, num_bytes: int) -> None:
        """Begins a turn.

        Args:
            now_s: On a monotonic clock.
            num_bytes: What the micro-batch may take on the wire; acknowledgements of more are of
                others that come behind it.
        """
        self._looked_s = now_s
        self._waited_s = self._longest_s = 0.0
        self._num_unacked_bytes = num_bytes
        self.has_heard = False

    def look(self, now_s: float, moved: Movement = STILL) -> float:
        """Takes in what moved since the look before.

        Returns:
            How long the micro-batch has kept the link waiting: less than its turn has lasted, when
            bytes moved meanwhile.
        """
        elapsed_s = own_time_s(self._looked_s, now_s)
        self._looked_s = now_s
        if moved.has_unread:
            return self._waited_s
        num_acked = min(moved.num_acked_bytes, self._num_unacked_bytes)
        self._num_unacked_bytes -= num_acked
        self.has_heard |= moved.num_received_bytes > 0
        back_s = (num_acked + moved.num_received_bytes) / SLOWEST_BYTES_PER_S
        self._waited_s = max(0.0, self._waited_s + elapsed_s - back_s)
        self._longest_s = max(self._longest_s, self._waited_s)
        return self._waited_s

    def end(self, now_s: float) -> float:
        """Ends a turn, with its answer.

        Returns:
            The longest that the micro-batch has kept the link waiting, as `look` counts.
        """
        return max(self._longest_s, self._waited_s + own_time_s(self._looked_s, now_s))
