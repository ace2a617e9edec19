"""Which blocks hold the KV of which slot. Pure bookkeeping; the tensors follow the `BlockPlan`.

slot 3, block size 4, 6 tokens:   blocks [ 7 | 2 ]
                                  token    0 1 2 3 | 4 5 . .
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.block_allocator import BlockAllocator
from stagecoach.contract.errors import KvFullError, StaleStateError
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot


class BlockCopy(NamedTuple):
    """A shared block that is about to be written: its content moves to a block of its own."""

    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """What a micro-batch needs of the KV tensors, before its forward."""

    block_tables: tuple[Sequence[int], ...]
    """Blocks of each slice's slot, in order; they hold `end_position` tokens. Those of `SlotTables`
    are arrays of int64, which are packed for the device a hundred times as fast as tuples."""
    new_blocks: tuple[int, ...]
    """Blocks taken from the pool, copy targets not among them."""
    copies: tuple[BlockCopy, ...]


@dataclass(slots=True)
class _Slot:
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    num_tokens: int = 0


class SlotTables:
    """Block tables of all slots.

    Args:
        num_blocks: Blocks in the pool.
        block_size: Tokens a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._allocator = BlockAllocator(num_blocks)
        self._slots: dict[int, _Slot] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no slot holds."""
        return self._allocator.num_free

    @property
    def num_held_slots(self) -> int:
        """Slots that hold tokens."""
        return len(self._slots)

    def num_tokens(self, kv_slot: int) -> int:
        """Tokens that a slot holds; 0 for an empty one."""
        slot = self._slots.get(kv_slot)
        return slot.num_tokens if slot else 0

    def apply(self, ops: Iterable[SlotOp], slices: Iterable[SequenceSlice]) -> BlockPlan:
        """Applies slot operations in order, then makes room for every slice.

        Returns:
            The blocks of each slice and what must happen to the tensors.

        Raises:
            StaleStateError: A slice starts beyond what its slot holds, a truncate or fork asks for
                more than there is, or a fork's target is not empty. Nothing changed.
            KvFullError: There are not enough free blocks. Nothing changed.
        """
        slices = tuple(slices)
        draft = _Draft(self._slots, self._allocator, self.block_size)
        try:
            for op in ops:
                draft.apply_op(op)
            block_tables = tuple(draft.extend(piece) for piece in slices)
        except (StaleStateError, KvFullError):
            self._allocator.roll_back()
            raise
        self._allocator.commit()
        for kv_slot, slot in draft.changed.items():
            if slot.num_tokens:
                self._slots[kv_slot] = slot
            else:
                self._slots.pop(kv_slot, None)
        return BlockPlan(
            block_tables=block_tables,
            new_blocks=tuple(draft.new_blocks),
            copies=tuple(draft.copies),
        )

    def free_all(self) -> None:
        """Empties every slot."""
        self.apply([FreeSlot(kv_slot) for kv_slot in self._slots], [])

    def check_integrity(self) -> None:
        """Asserts that every block is accounted for and every table fits its tokens."""
        for kv_slot, slot in self._slots.items():
            num_blocks = -(-slot.num_tokens // self.block_size)
            assert len(slot.blocks) == num_blocks, f"slot {kv_slot} has a table of the wrong length"
        held = (block for slot in self._slots.values() for block in slot.blocks)
        self._allocator.check_integrity(held)


class _Draft:
    """One `apply` in the making: changed slots as copies, block changes in the journal."""

    def __init__(self, slots: dict[int, _Slot], allocator: BlockAllocator, block_size: int) -> None:
        self.changed: dict[int, _Slot] = {}
        self.new_blocks: list[int] = []
        self.copies: list[BlockCopy] = []
        self._slots = slots
        self._allocator = allocator
        self._block_size = block_size

    def apply_op(self, op: SlotOp) -> None:
        match op:
            case FreeSlot(kv_slot):
                self._shrink(self._open(kv_slot), 0)
            case TruncateSlot(kv_slot, num_tokens):
                slot = self._open(kv_slot)
                _require_tokens(slot, kv_slot, num_tokens, "truncate keeps")
                self._shrink(slot, num_tokens)
            case ForkSlot(source_kv_slot, target_kv_slot, num_tokens):
                source, target = self._open(source_kv_slot), self._open(target_kv_slot)
                _require_tokens(source, source_kv_slot, num_tokens, "fork shares")
                if target.num_tokens:
                    raise StaleStateError(
                        f"fork target slot {target_kv_slot} holds {target.num_tokens} tokens",
                        kv_slot=target_kv_slot,
                    )
                target.blocks = source.blocks[: self._num_blocks(num_tokens)]
                target.num_tokens = num_tokens
                for block in target.blocks:
                    self._allocator.share(block)

    def extend(self, piece: SequenceSlice) -> Sequence[int]:
        """Makes room for a slice; returns the slot's blocks."""
        slot = self._open(piece.kv_slot)
        _require_tokens(slot, piece.kv_slot, piece.start_position, "slice starts at")
        self._shrink(slot, piece.start_position)
        if piece.start_position % self._block_size and self._allocator.is_shared(slot.blocks[-1]):
            copy = BlockCopy(slot.blocks[-1], self._take())
            self._allocator.release(copy.source)
            slot.blocks[-1] = copy.target
            self.copies.append(copy)
        while len(slot.blocks) < self._num_blocks(piece.end_position):
            block = self._take()
            slot.blocks.append(block)
            self.new_blocks.append(block)
        slot.num_tokens = piece.end_position
        return slot.blocks[:]

    def _open(self, kv_slot: int) -> _Slot:
        if kv_slot not in self.changed:
            slot = self._slots.get(kv_slot)
            self.changed[kv_slot] = _Slot(slot.blocks[:], slot.num_tokens) if slot else _Slot()
        return self.changed[kv_slot]

    def _shrink(self, slot: _Slot, num_tokens: int) -> None:
        num_blocks = self._num_blocks(num_tokens)
        # Backwards, so that the next sequence takes them in ascending order: side by side.
        for block in reversed(slot.blocks[num_blocks:]):
            self._allocator.release(block)
        del slot.blocks[num_blocks:]
        slot.num_tokens = num_tokens

    def _take(self) -> int:
        block = self._allocator.allocate()
        if block is None:
            raise KvFullError(
                f"all {self._allocator.num_blocks} KV blocks are in use",
                num_kv_blocks=self._allocator.num_blocks,
            )
        return block

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def _require_tokens(slot: _Slot, kv_slot: int, num_tokens: int, what: str) -> None:
    if num_tokens > slot.num_tokens:
        raise StaleStateError(
            f"slot {kv_slot} holds {slot.num_tokens} tokens, {what} {num_tokens}",
            kv_slot=kv_slot,
            num_tokens=slot.num_tokens,
        )
