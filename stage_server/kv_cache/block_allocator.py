"""Hands out block ids with reference counts. Pure; knows nothing of tensors or slots.

Every change is kept in a journal until `commit`. `roll_back` undoes the journal in reverse order;
since the free list is a stack, that restores it exactly, so a step that fails half-way leaves no
trace.
"""

from collections import Counter
from collections.abc import Iterable


class BlockAllocator:
    """Reference-counted blocks `[0, num_blocks)`.

    Args:
        num_blocks: Blocks in the pool.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks
        self._journal: list[tuple[int, int]] = []  # (block, change of its reference count)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self) -> int | None:
        """Takes a free block with one reference; None when there is none."""
        if not self._free:
            return None
        block = self._free[-1]
        self._change(block, +1)
        return block

    def share(self, block: int) -> None:
        """Adds a reference to a block that somebody holds."""
        assert self._ref_counts[block] > 0, f"block {block} is free"
        self._change(block, +1)

    def release(self, block: int) -> None:
        """Drops a reference; the last one frees the block."""
        assert self._ref_counts[block] > 0, f"block {block} is free"
        self._change(block, -1)

    def is_shared(self, block: int) -> bool:
        """True when more than one reference exists."""
        return self._ref_counts[block] > 1

    def commit(self) -> None:
        """Makes all changes since the last commit final."""
        self._journal.clear()

    def roll_back(self) -> None:
        """Undoes all changes since the last commit."""
        for block, change in reversed(self._journal):
            self._apply(block, -change)
        self._journal.clear()

    def check_integrity(self, held: Iterable[int]) -> None:
        """Asserts that the books balance.

        Args:
            held: Every block that a table holds, once per reference.
        """
        expected = Counter(held)
        counts = {block: count for block, count in enumerate(self._ref_counts) if count}
        assert counts == dict(expected), f"reference counts {counts} are not {dict(expected)}"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert set(self._free).isdisjoint(counts), "a held block is free"
        assert len(self._free) + len(counts) == self.num_blocks, "a block is lost"

    def _change(self, block: int, change: int) -> None:
        self._apply(block, change)
        self._journal.append((block, change))

    def _apply(self, block: int, change: int) -> None:
        before = self._ref_counts[block]
        self._ref_counts[block] = after = before + change
        if before == 0:
            taken = self._free.pop()
            assert taken == block, "the free list is a stack"
        elif after == 0:
            self._free.append(block)
