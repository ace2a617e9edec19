"""The sequences that wait: by arrival, and by how much there is to compute of them."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from coordinator.core.sequence import Sequence


class Prompt(NamedTuple):
    """A sequence with tokens to compute; in order, the shortest is first, then the oldest."""

    num_new_tokens: int
    """Tokens to compute. Of one that waits, as far as was known when it came."""
    arrival: int
    sequence: Sequence


class WaitingQueue:
    """Waiting sequences in two orders. What is here says nothing of who may pass whom.

    Gives each sequence its `arrival`, by which it is older or younger than any other here or
    running. One that ran before is older than all.
    """

    def __init__(self) -> None:
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()
        self._by_length: list[Prompt] = []
        self._prompts: dict[str, Prompt] = {}
        self._arrivals = count(1)
        self._returns = count(0, -1)

    def __len__(self) -> int:
        """Number of waiting sequences."""
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def add(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Takes in a new sequence.

        Args:
            sequence: Younger than all others.
            num_new_tokens: Tokens to compute, as far as is known; only an order depends on it.
        """
        sequence.arrival = next(self._arrivals)
        self._insert(sequence, num_new_tokens)

    def put_back(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Takes in a sequence that ran before, as the oldest; see `add`."""
        sequence.arrival = next(self._returns)
        self._insert(sequence, num_new_tokens)
        self._sequences.move_to_end(sequence.request_id, last=False)

    def peek(self) -> Sequence | None:
        """Returns the oldest without removing it; None when there is none."""
        return next(iter(self._sequences.values()), None)

    def shortest_first(self) -> list[Prompt]:
        """All of them as they are now, the one with the least to compute first."""
        return list(self._by_length)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence that is waiting."""
        del self._sequences[sequence.request_id]
        prompt = self._prompts.pop(sequence.request_id)
        del self._by_length[bisect_left(self._by_length, prompt)]

    def _insert(self, sequence: Sequence, num_new_tokens: int) -> None:
        self._sequences[sequence.request_id] = sequence
        prompt = Prompt(num_new_tokens, sequence.arrival, sequence)
        self._prompts[sequence.request_id] = prompt
        insort(self._by_length, prompt)
