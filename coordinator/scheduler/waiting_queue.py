"""The waiting sequences, in two orders: by seniority, and by the tokens left to compute."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count
from operator import attrgetter
from typing import NamedTuple

from coordinator.core.sequence import Sequence

_seniority = attrgetter("seniority")


class Prompt(NamedTuple):
    """A sequence with tokens to compute; of equal rank the shortest is first, then the oldest."""

    rank: tuple[int, ...]
    num_new_tokens: int
    """Tokens to compute. Of one that waits, as far as was known when it came."""
    arrival: int
    sequence: Sequence


class WaitingQueue:
    """Waiting sequences in two orders. What is here says nothing of who may pass whom.

    Gives each sequence its `arrival`, by which it is older or younger than any other here or
    running. One that ran before is older than all. The queue follows the seniority, so among equal
    ranks a new sequence is the last and one that ran before is the first.
    """

    def __init__(self) -> None:
        self._by_seniority: list[Sequence] = []
        self._by_length: list[Prompt] = []
        self._prompts: dict[str, Prompt] = {}
        self._arrivals = count(1)
        self._returns = count(0, -1)

    def __len__(self) -> int:
        """Number of waiting sequences."""
        return len(self._by_seniority)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_seniority)

    def add(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Takes in a sequence with its rank.

        Args:
            sequence: Youngest sequence of its rank, or if it ran before, the oldest from now on.
            num_new_tokens: Tokens to compute, as far as is known; only an order depends on it.
        """
        sequence.arrival = next(self._returns if sequence.has_returned else self._arrivals)
        insort(self._by_seniority, sequence, key=_seniority)
        prompt = Prompt(sequence.rank, num_new_tokens, sequence.arrival, sequence)
        self._prompts[sequence.request_id] = prompt
        insort(self._by_length, prompt)

    def peek(self) -> Sequence | None:
        """Returns the most senior without removing it; None when there is none."""
        return self._by_seniority[0] if self._by_seniority else None

    def shortest_first(self) -> list[Prompt]:
        """All of them as they are now, of equal rank the one with the least to compute first."""
        return list(self._by_length)

    def in_moving_order(self) -> list[Sequence]:
        """All of them so that one queue that takes them in, one by one, has them in this order."""
        returned = [one for one in self._by_seniority if one.has_returned]
        new = [one for one in self._by_seniority if not one.has_returned]
        return [*new, *reversed(returned)]

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence that is waiting."""
        place = bisect_left(self._by_seniority, sequence.seniority, key=_seniority)
        assert self._by_seniority[place] is sequence
        del self._by_seniority[place]
        prompt = self._prompts.pop(sequence.request_id)
        del self._by_length[bisect_left(self._by_length, prompt)]
