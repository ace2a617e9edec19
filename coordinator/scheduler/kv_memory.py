"""The KV memory of all stages, as the scheduler sees it: slots, blocks, and prefixes to share.

What a slot holds is decided here. Slot operations travel with the micro-batches, and every stage
applies them in the same order. When a sequence ends, its slot is retained for later sequences.
Retained slots are the first to go: they never keep a sequence from being admitted or from growing.

    empty ---- admit ----> running ---- retain ----> retained
      ^                     |  ^                      |  |
      +------ release ------+  +-- admit (take over) -+  |
      +--------------------------- evict ----------------+

A prefix is shared by forking the slot that holds it, running or retained. A retained slot is taken
over instead when it holds nothing else, or when no other slot can be had.

The prefix that a running sequence is about to compute is known too, so that other sequences with
the same prefix can wait for it instead of computing it once more.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from coordinator.core.sequence import Sequence
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.kv_ledger import KvLedger
from coordinator.scheduler.kv_slot_pool import KvSlotPool
from coordinator.scheduler.prefix_index import PrefixIndex, PrefixMatch, chain_hash, root_hash
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, SlotOp, TruncateSlot


class AwaitedPrefix(NamedTuple):
    """A prefix that a running sequence is about to compute."""

    kv_slot: int
    num_tokens: int
    """Tokens that both sequences begin with, whole blocks of them."""


class KvMemory:
    """Gives sequences a kv slot and blocks. Sets their `kv_slot` and `num_computed_tokens`.

    Args:
        config: The limits, and whether prefixes are shared.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._block_size = config.kv_block_size
        self._num_slots = config.num_slots
        self._shares_prefixes = config.prefix_cache
        self._min_awaited_tokens = config.min_awaited_tokens
        self._ledger = KvLedger(config.num_kv_blocks, config.kv_block_size)
        self._slots = KvSlotPool(config.num_slots)
        self._index = PrefixIndex()
        self._untold_ops: list[SlotOp] = []

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the smallest stage that no running sequence holds."""
        return self._ledger.num_free_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks that hold prefixes for later sequences."""
        return self._ledger.num_free_blocks - self._ledger.num_vacant_blocks

    @property
    def has_untold_ops(self) -> bool:
        """True when `take_slot_ops` has something to tell."""
        return bool(self._untold_ops)

    def take_slot_ops(self) -> tuple[SlotOp, ...]:
        """Returns what the stages must do, in order, before whatever runs next."""
        ops = tuple(self._untold_ops)
        self._untold_ops.clear()
        return ops

    def num_prefix_tokens(self, sequence: Sequence) -> int:
        """Tokens of a sequence without a slot that `admit` would count as computed now.

        Those of a prefix that is worth waiting for count too.
        """
        awaited = self.awaited_prefix(sequence)
        if awaited is not None:
            return awaited.num_tokens
        prefix = self._find(sequence)
        return prefix.num_blocks * self._block_size if prefix else 0

    def awaited_prefix(self, sequence: Sequence) -> AwaitedPrefix | None:
        """Finds who is about to compute a prefix of a sequence without a slot.

        Returns:
            None when there is nothing to wait for, or it is so little that computing it again is
            less.
        """
        if not self._shares_prefixes or not self._index.expects_any:
            return None
        hashes = self._shareable(sequence)
        coming = self._index.find_expected(hashes)
        if coming is None or coming.num_new_blocks * self._block_size < self._min_awaited_tokens:
            return None
        found = self._index.find(hashes)
        if found is not None and found.num_blocks >= coming.num_blocks:
            return None
        return AwaitedPrefix(coming.kv_slot, coming.num_blocks * self._block_size)

    def fits(self, sequence: Sequence) -> bool:
        """Tells whether `admit` would succeed now; knows nothing of slots."""
        return self._ledger.fits(sequence.num_tokens, self._find(sequence))

    def admit(self, sequence: Sequence, *, wholly: bool = False) -> bool:
        """Gives a sequence a slot and the blocks of all its known tokens.

        Its longest prefix that a slot holds counts as computed: whole blocks, and no more than
        `Sequence.num_skippable_tokens`, because the others must run for their logits.

        The caller sees to it that fewer sequences run than there are slots, and runs the sequence
        in the micro-batch that takes the slot operations.

        Args:
            sequence: Without a slot.
            wholly: Only if all the tokens that it may ever have would fit.

        Returns:
            False when they do not fit; then nothing changed.
        """
        prefix = self._find(sequence)
        num_tokens = sequence.max_num_tokens if wholly else sequence.num_tokens
        if not self._ledger.fits(num_tokens, prefix):
            return False
        kv_slot = self._open_slot(prefix)
        self._ledger.start(kv_slot, sequence.max_num_tokens, prefix)
        sequence.kv_slot = kv_slot
        sequence.num_computed_tokens = prefix.num_blocks * self._block_size if prefix else 0
        has_grown = self.grow(sequence)
        assert has_grown, "what fits is there"
        if self._shares_prefixes:
            num_blocks = sequence.num_tokens // self._block_size
            hashes = self._block_hashes(sequence, num_blocks)
            self._index.expect(kv_slot, hashes, prefix.num_blocks if prefix else 0)
        return True

    def grow(self, sequence: Sequence, *, num_drafts: int = 0) -> bool:
        """Gives a running sequence the blocks that it lacks to hold all its tokens.

        Args:
            sequence: With a slot.
            num_drafts: Guessed tokens that run behind them. For these no block is taken that
                another running sequence may want next.

        Returns:
            False when there are not enough; then nothing changed.
        """
        assert sequence.kv_slot is not None
        num_tokens = sequence.num_tokens + num_drafts
        num_blocks = self._ledger.num_lacking_blocks(sequence.kv_slot, num_tokens)
        if num_blocks == 0:
            return True
        num_kept = self._ledger.num_growing if num_drafts else 0
        if num_blocks + num_kept > self._ledger.num_free_blocks:
            return False
        while (num_missing := num_blocks - self._ledger.num_vacant_blocks) > 0:
            self._evict(next(self._index.retained), num_missing)
        self._ledger.grow(sequence.kv_slot, num_blocks)
        return True

    def note_computed(self, sequence: Sequence) -> None:
        """Makes the full blocks of a running sequence known, for others to share.

        Called when a micro-batch is back, so that nothing is shared that a stage may lack.
        """
        if not self._shares_prefixes:
            return
        assert sequence.kv_slot is not None
        num_known = self._index.num_blocks(sequence.kv_slot)
        num_full = sequence.num_computed_tokens // self._block_size
        if num_full > num_known:
            hashes = self._block_hashes(sequence, num_full)
            self._index.extend(sequence.kv_slot, hashes[num_known:num_full])

    def retain(self, sequence: Sequence) -> None:
        """Takes a running sequence's slot away and keeps what others may share.

        Args:
            sequence: Not in flight; all its computed tokens have been noted.
        """
        assert sequence.kv_slot is not None
        kv_slot, num_tokens = sequence.kv_slot, sequence.num_computed_tokens
        num_blocks = self._index.num_blocks(kv_slot)
        twin = self._index.twin(kv_slot) if num_blocks else None
        if twin is not None:
            self._index.touch(twin)
        if twin is not None or num_blocks == 0:
            self.release(sequence)
            return
        sequence.kv_slot = None
        sequence.num_computed_tokens = 0
        # Of failed drafts the stages may hold blocks beyond those of the computed tokens.
        has_more = num_blocks < self._ledger.num_blocks(kv_slot)
        self._ledger.retain(kv_slot, num_blocks)
        self._index.retain(kv_slot)
        if has_more or num_tokens > num_blocks * self._block_size:
            self._untold_ops.append(TruncateSlot(kv_slot, num_blocks * self._block_size))
        for covered in self._index.covered_by(kv_slot):
            self._empty(covered)

    def release(self, sequence: Sequence) -> None:
        """Takes a running sequence's slot away and keeps nothing of it."""
        assert sequence.kv_slot is not None
        self._empty(sequence.kv_slot)
        sequence.kv_slot = None
        sequence.num_computed_tokens = 0

    def distrust(self, output_ops: Iterable[SlotOp]) -> None:
        """Gives up all that is retained, after a micro-batch that stages may have run or not.

        Args:
            output_ops: Its operations. The slots that they name are freed once more, as far as
                they are empty. One that changed hands needs no telling: its new sequence starts at
                position 0, which makes a stage drop whatever the slot held, or by a fork, which
                frees it first.
        """
        self._evict_all()
        named = dict.fromkeys(_written_slot(op) for op in output_ops)
        self._untold_ops += (FreeSlot(slot) for slot in named if not self._slots.is_held(slot))

    def forget(self) -> None:
        """Gives up all that is retained, and has every stage empty every slot.

        For when a stage was lost, and nothing runs.
        """
        self._evict_all()
        # What was not told before is void: a stage that came back holds nothing to truncate.
        self._untold_ops = [FreeSlot(kv_slot) for kv_slot in range(self._num_slots)]

    def check_integrity(self, running: Collection[Sequence]) -> None:
        """Asserts that slots, blocks and prefixes agree.

        Args:
            running: All sequences that have a slot.
        """
        num_tokens = {
            sequence.kv_slot: sequence.num_computed_tokens
            for sequence in running
            if sequence.kv_slot is not None
        }
        retained = {slot: self._index.num_blocks(slot) for slot in self._index.retained}
        self._slots.check_integrity([*num_tokens, *retained])
        self._ledger.check_integrity(num_tokens, retained)
        self._index.check_integrity()
        for kv_slot, tokens in num_tokens.items():
            assert self._index.num_blocks(kv_slot) * self._block_size <= tokens

    def _find(self, sequence: Sequence) -> PrefixMatch | None:
        if not self._shares_prefixes:
            return None
        return self._index.find(self._shareable(sequence))

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks that a sequence need not compute; see `num_skippable_tokens`."""
        num_blocks = sequence.num_skippable_tokens // self._block_size
        return self._block_hashes(sequence, num_blocks)

    def _block_hashes(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Names of the first full blocks; each is computed once."""
        hashes, size = sequence.block_hashes, self._block_size
        for start in range(len(hashes) * size, num_blocks * size, size):
            parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
            hashes.append(chain_hash(parent, sequence.token_ids(start, start + size)))
        return hashes[:num_blocks]

    def _open_slot(self, prefix: PrefixMatch | None) -> int:
        """Finds a slot to run in, and has it share the prefix."""
        if prefix is None:
            return self._acquire(keep=None)
        source, num_blocks = prefix
        holds_no_more = self._index.num_blocks(source) == num_blocks
        is_only_one = not self._slots.has_free and self._index.num_retained == 1
        if self._index.is_retained(source) and (holds_no_more or is_only_one):
            # The first slice starts where the prefix ends, which makes a stage drop the rest.
            self._index.cut(source, num_blocks)
            self._index.resume(source)
            return source
        self._index.touch(source)
        target = self._acquire(keep=source)
        # Freed once more, in case a micro-batch that freed it got lost on the way to a stage.
        fork = ForkSlot(source, target, num_blocks * self._block_size)
        self._untold_ops += (FreeSlot(target), fork)
        return target

    def _acquire(self, *, keep: int | None) -> int:
        """Takes a free slot, at the cost of the least recently used one but `keep`."""
        if not self._slots.has_free:
            self._empty(next(slot for slot in self._index.retained if slot != keep))
        return self._slots.acquire()

    def _evict(self, kv_slot: int, num_blocks: int) -> None:
        """Makes up to `num_blocks` blocks of a retained slot vacant, from its end."""
        num_left = self._ledger.trim(kv_slot, num_blocks)
        if num_left == 0:
            self._empty(kv_slot)
            return
        self._index.cut(kv_slot, num_left)
        self._untold_ops.append(TruncateSlot(kv_slot, num_left * self._block_size))

    def _evict_all(self) -> None:
        for kv_slot in tuple(self._index.retained):
            self._empty(kv_slot)

    def _empty(self, kv_slot: int) -> None:
        self._ledger.release(kv_slot)
        self._index.remove(kv_slot)
        self._slots.release(kv_slot)
        self._untold_ops.append(FreeSlot(kv_slot))


def _written_slot(op: SlotOp) -> int:
    """The slot that an operation changes."""
    return op.target_kv_slot if isinstance(op, ForkSlot) else op.kv_slot
