"""Mirrors the block arithmetic of the smallest stage, so that no stage ever runs out of KV blocks.

The ledger counts blocks; only the stage knows which blocks a slot has. The ledger knows which slots
share a block, because the stage counts a shared block once.

    total = free + held by running slots          free = cached + vacant
                                                  cached: held by retained slots alone

Slots share full blocks only, from their start on. So nobody writes a shared block, no stage copies
one, and a slot that holds a block holds all blocks before it.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.scheduler.prefix_index import PrefixMatch


@dataclass(slots=True, eq=False)
class _Block:
    num_slots: int = 1
    """Slots that hold it."""
    num_running: int = 1
    """Slots of `num_slots` in which a sequence runs."""


@dataclass(slots=True, eq=False)
class _Table:
    blocks: list[_Block]
    limit: int | None
    """Blocks that the running sequence may grow to. None: retained."""


class KvLedger:
    """KV blocks that each kv slot holds.

    Args:
        num_blocks: Blocks of the smallest stage.
        block_size: Tokens a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_total_blocks = num_blocks
        self._block_size = block_size
        self._num_free_blocks = num_blocks
        self._num_vacant_blocks = num_blocks
        self._num_growing = 0
        self._tables: dict[int, _Table] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no running sequence holds."""
        return self._num_free_blocks

    @property
    def num_vacant_blocks(self) -> int:
        """Blocks that no slot holds, running or retained."""
        return self._num_vacant_blocks

    @property
    def num_growing(self) -> int:
        """Running sequences that may want another block."""
        return self._num_growing

    def num_blocks(self, kv_slot: int) -> int:
        """Blocks that a slot holds."""
        return len(self._tables[kv_slot].blocks)

    def fits(self, num_tokens: int, prefix: PrefixMatch | None = None) -> bool:
        """Tells whether a sequence may be admitted.

        Only if one block is left for every sequence that may still grow. Without that headroom
        sequences are admitted that the next steps preempt again: in a simulation with four times
        more requests than fit, a fifth to a third of all tokens were computed twice.

        Args:
            num_tokens: Tokens of the sequence now; at least 1.
            prefix: Blocks that it would share.
        """
        num_blocks = self._blocks_of(num_tokens)
        if prefix is not None:
            shared = self._tables[prefix.kv_slot].blocks
            num_blocks -= bisect_left(
                shared, True, hi=prefix.num_blocks, key=lambda block: block.num_running == 0
            )
        return num_blocks + self._num_growing <= self._num_free_blocks

    def start(self, kv_slot: int, max_num_tokens: int, prefix: PrefixMatch | None = None) -> None:
        """Lets a sequence run in a slot that holds no more than the blocks of its prefix.

        Args:
            kv_slot: A slot that is empty, or the one of the prefix, retained: then it keeps these
                blocks and no more.
            max_num_tokens: Tokens that the sequence may grow to; more than its prefix holds.
            prefix: Blocks to share.
        """
        blocks: list[_Block] = []
        if prefix is not None:
            blocks = self._tables[prefix.kv_slot].blocks[: prefix.num_blocks]
            takes_over = prefix.kv_slot == kv_slot
            if takes_over:
                self.cut(kv_slot, prefix.num_blocks)
            for block in blocks:
                block.num_slots += not takes_over
                self._num_free_blocks -= block.num_running == 0
                block.num_running += 1
        self._tables[kv_slot] = _Table(blocks, self._blocks_of(max_num_tokens))
        self._num_growing += 1

    def num_lacking_blocks(self, kv_slot: int, num_tokens: int) -> int:
        """Blocks that a running sequence lacks to hold `num_tokens` tokens."""
        num_held = len(self._tables[kv_slot].blocks)
        if num_tokens <= num_held * self._block_size:
            return 0
        return self._blocks_of(num_tokens) - num_held

    def grow(self, kv_slot: int, num_blocks: int) -> None:
        """Gives a running sequence vacant blocks; the caller sees to it that there are as many."""
        table = self._tables[kv_slot]
        table.blocks.extend(_Block() for _ in range(num_blocks))
        self._num_vacant_blocks -= num_blocks
        self._num_free_blocks -= num_blocks
        self._num_growing -= num_blocks > 0 and len(table.blocks) == table.limit

    def retain(self, kv_slot: int, num_blocks: int) -> None:
        """Keeps the first blocks of a sequence that runs no more."""
        table = self._tables[kv_slot]
        self._end_running(table)
        self.cut(kv_slot, num_blocks)

    def trim(self, kv_slot: int, num_blocks: int) -> int:
        """Makes blocks at the end of a retained slot vacant, as far as no other slot holds them.

        Returns:
            Blocks that are left; 0 also when other slots hold all that are left, so that the slot
            is of no more use.
        """
        blocks = self._tables[kv_slot].blocks
        num_shared = bisect_left(blocks, True, key=lambda block: block.num_slots == 1)
        num_left = max(len(blocks) - num_blocks, num_shared)
        self.cut(kv_slot, num_left)
        return num_left if num_left > num_shared else 0

    def cut(self, kv_slot: int, num_blocks: int) -> None:
        """Drops all but the first blocks of a retained slot."""
        blocks = self._tables[kv_slot].blocks
        for block in blocks[num_blocks:]:
            block.num_slots -= 1
            self._num_vacant_blocks += block.num_slots == 0
        del blocks[num_blocks:]

    def release(self, kv_slot: int) -> None:
        """Empties a slot, running or retained."""
        table = self._tables[kv_slot]
        if table.limit is not None:
            self._end_running(table)
        self.cut(kv_slot, 0)
        del self._tables[kv_slot]

    def check_integrity(self, running: Mapping[int, int], retained: Mapping[int, int]) -> None:
        """Asserts that every block is accounted for.

        Args:
            running: By kv slot, the tokens that the stages hold for each running sequence.
            retained: By kv slot, the full blocks that are known of each retained slot.
        """
        tables = self._tables
        assert tables.keys() == running.keys() | retained.keys(), "who holds blocks, and no other"
        num_growing = 0
        for kv_slot, num_tokens in running.items():
            limit = tables[kv_slot].limit
            assert limit is not None
            assert self._blocks_of(num_tokens) <= len(tables[kv_slot].blocks) <= limit
            num_growing += len(tables[kv_slot].blocks) < limit
        assert num_growing == self._num_growing
        for kv_slot, num_blocks in retained.items():
            assert tables[kv_slot].limit is None
            assert len(tables[kv_slot].blocks) == num_blocks
        slots: dict[_Block, list[int]] = {}
        for kv_slot, table in tables.items():
            for block in table.blocks:
                slots.setdefault(block, []).append(kv_slot)
        for block, holders in slots.items():
            assert block.num_slots == len(holders) == len(set(holders))
            assert block.num_running == sum(kv_slot in running for kv_slot in holders)
        num_held = sum(block.num_running > 0 for block in slots)
        assert self._num_vacant_blocks == self._num_total_blocks - len(slots) >= 0
        assert self._num_free_blocks == self._num_total_blocks - num_held

    def _end_running(self, table: _Table) -> None:
        self._num_growing -= table.limit is not None and len(table.blocks) < table.limit
        table.limit = None
        for block in table.blocks:
            block.num_running -= 1
            self._num_free_blocks += block.num_running == 0

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
