"""Admits waiting sequences: by slots, by KV memory, and by which sequence may pass which.

The senior sequence is the oldest of the lowest rank, and goes first. Other sequences may pass the
senior while it does not fit, or while prompts that run need longer. At most `MAX_PASSES` sequences
pass it; then no sequence is admitted before the senior runs. The last free slot is kept for the
senior. A senior that ran before is passed only by sequences that fit to their last token, so that
none of them holds the room that the senior lacks for longer than it must.
"""

from collections.abc import Iterable

from coordinator.core.sequence import Sequence, SequenceState
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.kv_memory import AwaitedPrefix, KvMemory
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.running_sequences import RunningSequences
from coordinator.scheduler.waiting_queue import Prompt, WaitingQueue

MAX_PASSES = 64
"""Junior sequences that are admitted before one that is the first of those that wait."""


class Entrance:
    """The waiting queue, and the way out of it. Also counts what the prefix cache saved.

    Args:
        config: The limits.
        policy: Ranks those that come.
        memory: Gives slots and blocks.
        running: Sequences with a slot; an admitted one is added.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy,
        memory: KvMemory,
        running: RunningSequences,
    ) -> None:
        self._policy = policy
        self._max_num_seqs = config.max_num_seqs
        self._memory = memory
        self._running = running
        self._queue = WaitingQueue()
        self.num_prefix_query_tokens = 0
        """Tokens of all prompts that were admitted."""
        self.num_prefix_hit_tokens = 0
        """Tokens of `num_prefix_query_tokens` that the prefix cache held."""

    @property
    def waiting(self) -> Iterable[Sequence]:
        """Sequences that wait, the most senior first."""
        return self._queue

    @property
    def num_waiting(self) -> int:
        """How many they are."""
        return len(self._queue)

    @property
    def first(self) -> Sequence | None:
        """The one that is next; None when nobody waits."""
        return self._queue.peek()

    def in_moving_order(self) -> list[Sequence]:
        """Sequences that wait; see `WaitingQueue.in_moving_order`."""
        return self._queue.in_moving_order()

    def add(self, sequence: Sequence) -> None:
        """Takes in a sequence that waits; one that ran before goes in front of its rank."""
        sequence.rank = self._policy.rank(sequence)
        num_new_tokens = sequence.num_tokens - self._memory.num_prefix_tokens(sequence)
        self._queue.add(sequence, num_new_tokens)

    def remove(self, sequence: Sequence) -> None:
        """Lets a waiting sequence go."""
        self._queue.remove(sequence)

    def candidates(self) -> list[Prompt]:
        """Sequences that may be admitted now if they fit; of equal rank the shortest first."""
        first = self._queue.peek()
        num_slots = self._max_num_seqs - len(self._running)
        if first is None or num_slots == 0:
            return []
        if first.num_passes >= MAX_PASSES:
            return [Prompt((), 0, first.arrival, first)]  # before those that run, too
        if num_slots == 1:
            return [Prompt(first.rank, first.num_tokens, first.arrival, first)]
        return self._queue.shortest_first()

    def awaited_prefix(self, sequence: Sequence) -> AwaitedPrefix | None:
        """Who computes what this one needs too; see `KvMemory.awaited_prefix`."""
        return self._memory.awaited_prefix(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Lets a waiting sequence run, if there is a slot and the blocks of its known tokens.

        It must be in the micro-batch that takes the slot operations.

        Returns:
            False when it has to wait on; then nothing changed.
        """
        if sequence.is_held or len(self._running) == self._max_num_seqs:
            return False
        first = self._queue.peek()
        assert first is not None, "the sequence waits"
        passes = first is not sequence
        if passes and (
            first.num_passes >= MAX_PASSES or len(self._running) + 1 == self._max_num_seqs
        ):
            return False
        if not self._memory.admit(sequence, wholly=passes and first.has_returned):
            sequence.lacks_memory = True
            return False
        if passes:
            first.num_passes += 1
        self._enter(sequence)
        return True

    def fits(self, sequence: Sequence) -> bool:
        """True when one that waits elsewhere would be admitted at once."""
        has_slot = len(self._running) < self._max_num_seqs
        return has_slot and not self._queue and self._memory.fits(sequence)

    def admit_alone(self, sequence: Sequence) -> bool:
        """Lets a waiting sequence run before all others; see `admit`."""
        if len(self._running) == self._max_num_seqs or not self._memory.admit(sequence):
            return False
        self._enter(sequence)
        return True

    def _enter(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
        sequence.lacks_memory = False
        self._running.add(sequence)
        sequence.state = SequenceState.RUNNING
        if not sequence.has_returned:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.num_prefix_query_tokens += sequence.num_prompt_tokens
            self.num_prefix_hit_tokens += sequence.num_cached_tokens
