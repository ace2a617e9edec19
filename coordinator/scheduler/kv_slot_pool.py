"""Hands out kv slots."""

from collections.abc import Collection


class KvSlotPool:
    """The slots `[0, num_slots)`, each free, running or retained.

    Args:
        num_slots: Slots that every stage has.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(reversed(range(num_slots)))
        self._held: set[int] = set()

    @property
    def has_free(self) -> bool:
        """True while `acquire` has something to hand out."""
        return bool(self._free)

    def is_held(self, kv_slot: int) -> bool:
        """True for a slot that was acquired and not released."""
        return kv_slot in self._held

    def acquire(self) -> int:
        """Takes a free slot; the caller sees to it that there is one."""
        kv_slot = self._free.pop()
        self._held.add(kv_slot)
        return kv_slot

    def release(self, kv_slot: int) -> None:
        """Gives a held slot back."""
        self._held.remove(kv_slot)
        self._free.append(kv_slot)

    def check_integrity(self, held: Collection[int]) -> None:
        """Asserts that every slot is either free or held exactly once.

        Args:
            held: Slots that are running or retained.
        """
        assert len(held) == len(self._held) == len(set(held)), "a slot is held twice or by nobody"
        assert set(held) == self._held, "slots are held by who should not"
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert self._held.isdisjoint(self._free), "a slot is both free and held"
