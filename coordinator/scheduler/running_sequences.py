"""The sequences that have a slot, in the order in which they keep it."""

from collections.abc import Iterator

from coordinator.core.sequence import Sequence


class RunningSequences:
    """Running sequences by rank, and by admission among equal ranks: the last is preempted first.

    Each iteration follows that order. Costs a sort only when a sequence is admitted behind one of
    higher rank.
    """

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}

    def __len__(self) -> int:
        """Number of running sequences."""
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """Takes in a sequence that was just admitted."""
        last = next(reversed(self._sequences.values()), None)
        self._sequences[sequence.request_id] = sequence
        if last is not None and sequence.rank < last.rank:
            in_order = sorted(self._sequences.values(), key=lambda one: one.rank)  # stable
            self._sequences = {one.request_id: one for one in in_order}

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go."""
        del self._sequences[sequence.request_id]

    @property
    def victim(self) -> Sequence:
        """The one to preempt next: the last that is not in flight. There is one."""
        return next(one for one in reversed(self._sequences.values()) if not one.in_flight)
