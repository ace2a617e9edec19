"""Hands out kv slots, and remembers which freed ones the stages have not been told of."""

from collections.abc import Collection, Iterable


class KvSlotPool:
    """The slots `[0, num_slots)`, each held by at most one sequence.

    A freed slot may be acquired again at once: stages free before they run, in order.

    Args:
        num_slots: Sequences that run at once.
    """

    def __init__(self, num_slots: int) -> None:
        """Starts with every slot free, and empty on every stage."""
        self._free = list(reversed(range(num_slots)))
        self._held: set[int] = set()
        self._untold: dict[int, None] = {}  # a set that keeps its order

    @property
    def has_untold(self) -> bool:
        """True when `take_freed` has something to tell."""
        return bool(self._untold)

    def acquire(self) -> int:
        """Takes a free slot; the caller sees to it that there is one."""
        kv_slot = self._free.pop()
        self._held.add(kv_slot)
        return kv_slot

    def release(self, kv_slot: int) -> None:
        """Gives a held slot back."""
        self._held.remove(kv_slot)
        self._free.append(kv_slot)
        self._untold[kv_slot] = None

    def tell_again(self, kv_slots: Iterable[int]) -> None:
        """Lists slots as freed once more, as far as nobody holds them.

        A slot that changed hands needs no telling: its new sequence starts at position 0, which
        makes a stage drop whatever the slot held.
        """
        self._untold.update((kv_slot, None) for kv_slot in kv_slots if kv_slot not in self._held)

    def take_freed(self) -> tuple[int, ...]:
        """Returns the slots freed since the last call."""
        freed = tuple(self._untold)
        self._untold.clear()
        return freed

    def check_integrity(self, held: Collection[int]) -> None:
        """Asserts that every slot is either free or held by exactly one sequence.

        Args:
            held: Slots of all running sequences.
        """
        assert len(held) == len(self._held) == len(set(held)), "a slot is held twice or by nobody"
        assert set(held) == self._held, "slots are held by who does not run"
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert self._held.isdisjoint(self._free), "a slot is both free and held"
