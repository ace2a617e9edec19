"""Splits the room for prompts in one micro-batch, so that short ones start soon and none starves.

The senior is the oldest prompt of the lowest rank that can run. The room is given out in three
turns:

1. Short prompts: those of the senior's rank with at most half of its tokens left to compute, the
   shortest first. They leave the senior half of the room.
2. The senior.
3. The other prompts, by rank, the shortest first.

So a short prompt waits for a chunk or two, however much is ahead of it. Prompts of about one length
run one after another in the order of their arrival. The senior takes at most twice as long as
alone. Each prompt of a rank becomes the senior in turn, because the older ones are finite in number
and all of them end.

A prompt waits while another prompt is about to compute its prefix, and lends its own turn to that
prompt meanwhile: as the senior, or among the short prompts up to the end of the common prefix.
"""

from collections import deque
from collections.abc import Iterator
from operator import attrgetter

from coordinator.core.sequence import Sequence
from coordinator.scheduler.entrance import Entrance
from coordinator.scheduler.kv_memory import AwaitedPrefix
from coordinator.scheduler.step_room import StepRoom
from coordinator.scheduler.waiting_queue import Prompt

Share = tuple[Sequence, int]
"""A sequence, and the tokens that it gets in a micro-batch."""

_seniority = attrgetter("seniority")

_MAX_SKIPPED = 16
"""Waiting sequences that do not fit, or wait for a prefix, before a micro-batch looks no further.
A step costs the same however many wait."""


class PrefillSplit:
    """One micro-batch's prompts. Admits those that wait and get a share, and no others.

    Args:
        room: What is left of the micro-batch.
        running: Sequences that are not in flight and have more than a decode to compute.
        entrance: Entrance where sequences wait.
        admits: Whether any of these may be admitted.
    """

    def __init__(
        self, room: StepRoom, running: list[Sequence], entrance: Entrance, *, admits: bool
    ) -> None:
        self._room = room
        self._entrance = entrance
        self._by_slot = {sequence.kv_slot: sequence for sequence in running}
        self._running = deque(sorted(map(_prompt, running)))
        self._waiting = deque(entrance.candidates() if admits else ())
        self._num_skipped = 0

    def shares(self) -> Iterator[Share]:
        """Yields each sequence that gets tokens; the caller takes it into the micro-batch at once.

        Every admitted one is yielded.
        """
        senior = self._senior()
        num_left = num_kept = 0
        if senior is not None:
            num_left = senior.num_uncomputed_tokens
            num_kept = min(num_left, -(-self._room.num_prefill_tokens // 2))
        late: Prompt | None = None
        for prompt in self._shortest_first():
            if senior is None or prompt.rank > senior.rank or 2 * prompt.num_new_tokens > num_left:
                late = prompt
                break
            if prompt.sequence is not senior:
                yield from self._share(prompt.sequence, num_kept)
            if self._room.num_prefill_tokens <= num_kept:
                break
        if senior is not None:
            yield from self._share(senior, 0)
        if late is not None:
            yield from self._share(late.sequence, 0)
        for prompt in self._shortest_first():
            if self._room.num_prefill_tokens == 0:
                return
            yield from self._share(prompt.sequence, 0)

    def _shortest_first(self) -> Iterator[Prompt]:
        """The sequences that have not been looked at yet, the shortest first."""
        running, waiting = self._running, self._waiting
        while running or waiting:
            is_next_waiting = not running or (waiting and waiting[0] < running[0])
            yield (waiting if is_next_waiting else running).popleft()

    def _senior(self) -> Sequence | None:
        """The most senior, or whoever computes its prefix; admitted if it waits and fits.

        Returns:
            None when the most senior does not fit and nothing else is there.
        """
        running = min(self._by_slot.values(), key=_seniority, default=None)
        first = self._entrance.first if self._waiting else None
        if first is None or (running is not None and running.seniority < first.seniority):
            return running
        if (awaited := self._entrance.awaited_prefix(first)) is not None:
            return self._by_slot.get(awaited.kv_slot, running)
        return first if self._entrance.admit(first) else running

    def _share(self, sequence: Sequence, num_kept: int) -> Iterator[Share]:
        """Gives a sequence what it needs, but for some tokens that are kept for another."""
        most = self._room.num_prefill_tokens - num_kept
        if most <= 0 or sequence.in_flight:
            return
        if sequence.kv_slot is None:
            if (awaited := self._entrance.awaited_prefix(sequence)) is not None:
                self._skip()
                yield from self._lend(awaited, most)
                return
            if not self._entrance.admit(sequence):
                self._skip()
                return
        yield sequence, self._room.take(sequence, most)

    def _lend(self, awaited: AwaitedPrefix, most: int) -> Iterator[Share]:
        """Lets another compute what a sequence waits for, in its place."""
        computing = self._by_slot.get(awaited.kv_slot)
        if computing is not None and not computing.in_flight:
            num_tokens = awaited.num_tokens - computing.num_computed_tokens
            yield computing, self._room.take(computing, min(most, num_tokens))

    def _skip(self) -> None:
        self._num_skipped += 1
        if self._num_skipped == _MAX_SKIPPED:
            self._waiting.clear()


def _prompt(sequence: Sequence) -> Prompt:
    return Prompt(sequence.rank, sequence.num_uncomputed_tokens, sequence.arrival, sequence)
