"""Decides on which lane a request runs, and moves waiting sequences when lanes come and go.

A sequence that has KV is bound to its lane. A waiting sequence has none, so it can go anywhere.
"""

from collections.abc import Sequence as ListLike

from coordinator.core.request import FinishReason
from coordinator.core.sequence import Sequence
from coordinator.engine.lane import Lane
from stagecoach.contract.errors import QueueFullError

PREFIX_WEIGHT = 4
"""Sequences that a whole prompt in a lane's prefix cache is worth, when lanes are compared."""


class Dispatcher:
    """Owned by the engine's task.

    Args:
        lanes: All there are.
        max_num_waiting: Sequences that wait, on all lanes together, beyond which none is taken.
    """

    def __init__(self, lanes: ListLike[Lane], *, max_num_waiting: int) -> None:
        self._lanes = lanes
        self._max_num_waiting = max_num_waiting
        self._lane_of: dict[str, Lane] = {}

    def check_room(self) -> None:
        """Refuses one more request than may wait; costs nothing.

        Raises:
            QueueFullError: `max_num_waiting` sequences wait already.
        """
        num_waiting = sum(lane.num_waiting for lane in self._lanes)
        if num_waiting >= self._max_num_waiting:
            raise QueueFullError(
                f"{num_waiting} requests are waiting, the limit is {self._max_num_waiting}",
                num_waiting=num_waiting,
                max_num_waiting=self._max_num_waiting,
            )

    def holds(self, request_id: str) -> bool:
        """True until the sequence of a request has ended and is in no micro-batch any more."""
        return any(lane.holds(request_id) for lane in self._lanes)

    def place(self, sequence: Sequence) -> None:
        """Puts a new sequence in the queue of the lane that suits it best.

        Args:
            sequence: No longer than any lane holds; its id is held by none.
        """
        self._put(sequence, self._best_lane(sequence))

    def stop(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence, whose request is to be forgotten later; see `Lane.finish`."""
        self._lane_of[sequence.request_id].finish(sequence.request_id, reason)

    def forget(self, sequence: Sequence, reason: FinishReason) -> None:
        """Forgets a request; ends its sequence, wherever it is, unless that has ended before."""
        lane = self._lane_of.pop(sequence.request_id)
        if sequence.finish_reason is None:
            lane.finish(sequence.request_id, reason)

    def spread(self) -> None:
        """Moves sequences that wait: away from lanes that are closed, and to those with room."""
        is_open = [lane.is_open for lane in self._lanes]
        if len(self._lanes) == 1 or not any(is_open):
            return
        for lane in self._lanes:
            if not lane.is_open:
                self._empty(lane)
        self._balance()
        self._relieve()

    def _empty(self, lane: Lane) -> None:
        for sequence in lane.take_back_all():
            self._put(sequence, self._best_lane(sequence))

    def _balance(self) -> None:
        """Lets lanes without a queue take from the longest one what has not run yet."""
        lanes = [lane for lane in self._lanes if lane.is_open]
        while True:
            taker = min(lanes, key=lambda lane: lane.num_sequences)
            giver = max(lanes, key=lambda lane: lane.num_sequences)
            if giver.num_sequences - taker.num_sequences <= PREFIX_WEIGHT + 1:
                return
            fresh = (one for one in giver.waiting if not one.has_returned)
            sequence = next(fresh, None)
            if sequence is None or taker.num_waiting > 0:
                return
            self._put(giver.take_back(sequence), taker)

    def _relieve(self) -> None:
        """Moves the oldest of a queue, if it lacks memory there, to where it can run at once."""
        lanes = [lane for lane in self._lanes if lane.is_open]
        for giver in lanes:
            oldest = next(iter(giver.waiting), None)
            if oldest is None or oldest.has_returned or not oldest.lacks_memory:
                continue
            taker = next((lane for lane in lanes if lane.fits(oldest)), None)
            if taker is not None:
                self._put(giver.take_back(oldest), taker)

    def _put(self, sequence: Sequence, lane: Lane) -> None:
        lane.place(sequence)
        self._lane_of[sequence.request_id] = lane

    def _best_lane(self, sequence: Sequence) -> Lane:
        """The open lane with the least to do; the more of the prompt it holds, the less it may."""
        lanes = [lane for lane in self._lanes if lane.is_open] or self._lanes
        if len(lanes) == 1:
            return lanes[0]

        def cost(lane: Lane) -> float:
            share = lane.num_prefix_tokens(sequence) / sequence.num_tokens
            return lane.num_sequences - PREFIX_WEIGHT * share

        return min(lanes, key=cost)
