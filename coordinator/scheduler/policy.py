"""The order in which sequences get at the stages: one rank for each.

Whatever the scheduler orders follows from it: who is admitted first, who is preempted last, whose
prompt goes on first, and who is where in the queue of another lane after a move. A policy is one
class with one method.
"""

from typing import Protocol

from coordinator.core.sequence import Sequence


class Policy(Protocol):
    """Ranks sequences. One policy serves all pipelines of an engine, so it keeps no queue."""

    def rank(self, sequence: Sequence) -> tuple[int, ...]:
        """Lower ranks are admitted first and preempted last.

        Asked each time that a sequence begins to wait; the rank holds until it waits again. Ranks
        of one policy are equally long.

        Among equal ranks, the one that came first is admitted first, and any that ran before comes
        before all new ones; the one that was admitted last is preempted first.
        """
        ...


class FirstComeFirstServed:
    """Ranks all alike, so that nothing counts but who came first."""

    def rank(self, sequence: Sequence) -> tuple[int, ...]:
        """Returns the one rank that there is."""
        return ()
