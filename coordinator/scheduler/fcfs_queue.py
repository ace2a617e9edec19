"""First come, first served: the order in which waiting sequences are admitted."""

from collections import OrderedDict
from collections.abc import Iterator

from coordinator.core.sequence import Sequence


class FcfsQueue:
    """Waiting sequences by arrival; one that ran before goes to the front. All in O(1).

    Another policy is another class of these methods.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()

    def __len__(self) -> int:
        """Number of waiting sequences."""
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Waiting sequences, the next first."""
        return iter(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """Takes in a new sequence."""
        self._sequences[sequence.request_id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        """Takes in a preempted sequence, before all others."""
        self._sequences[sequence.request_id] = sequence
        self._sequences.move_to_end(sequence.request_id, last=False)

    def peek(self) -> Sequence | None:
        """Returns the next sequence without removing it; None when there is none."""
        return next(iter(self._sequences.values()), None)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence that is waiting."""
        del self._sequences[sequence.request_id]
