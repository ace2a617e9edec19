"""Finds the kv slot that holds the longest prefix of a sequence, by content.

A full block is named by a hash over its tokens and the name of the block before it (as in vLLM,
github.com/vllm-project/vllm, `vllm/v1/core/kv_cache_utils.py`): equal names mean equal tokens from
the start of the sequence on. A cryptographic hash, because whoever could make two prompts collide
would read another's KV.

    slot 2, running    [ a ][ b ][ c ]        block names; slot 5 shares a and b with slot 2
    slot 5, retained   [ a ][ b ][ x ]

A slot is running, or retained for later sequences. A running one is expected to hold the blocks
that its sequence is about to compute. Pure; knows no clock: least recently used is an order.
"""

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

_HASH_BYTES = 32


def root_hash(cache_salt: str | None) -> bytes:
    """Names what stands before the first block: sequences of different salts share nothing."""
    if cache_salt is None:
        return bytes(_HASH_BYTES)
    # JSON may bring half of a surrogate pair, which has no UTF-8 of its own.
    return blake2b(cache_salt.encode(errors="surrogatepass"), digest_size=_HASH_BYTES).digest()


def chain_hash(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """Names a full block.

    Args:
        parent: Name of the block before it, or `root_hash`.
        token_ids: Tokens of the block, unsigned 32-bit.
    """
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()


def block_hashes(
    cache_salt: str | None, token_ids: Sequence[int], block_size: int
) -> Iterator[bytes]:
    """Names the full blocks of a prompt in turn, as a sequence does of its own accord.

    Args:
        cache_salt: Salt of the sequence's request.
        token_ids: The prompt.
        block_size: Tokens of a block.
    """
    parent = root_hash(cache_salt)
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = chain_hash(parent, token_ids[start : start + block_size])
        yield parent


class PrefixMatch(NamedTuple):
    """Where a prefix is."""

    kv_slot: int
    num_blocks: int
    """Full blocks from the start of the slot; at least 1."""


class ExpectedPrefix(NamedTuple):
    """Where a prefix will be before long."""

    kv_slot: int
    num_blocks: int
    """Full blocks from the start of the slot; at least 1."""
    num_new_blocks: int
    """Blocks of `num_blocks` that the slot lacked when its sequence was admitted."""


class PrefixIndex:
    """The names of the full blocks of every kv slot, and which slots are retained."""

    def __init__(self) -> None:
        self._chains: dict[int, list[bytes]] = {}
        self._holders: dict[bytes, set[int]] = {}
        self._retained: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._expected: dict[int, list[bytes]] = {}
        self._num_blocks_at_first: dict[int, int] = {}
        self._expectants: dict[bytes, dict[int, None]] = {}

    @property
    def num_retained(self) -> int:
        """Slots that no sequence runs in, and that keep their blocks for later ones."""
        return len(self._retained)

    @property
    def retained(self) -> Iterator[int]:
        """Retained slots, the least recently used first."""
        return iter(self._retained)

    def find(self, hashes: Sequence[bytes]) -> PrefixMatch | None:
        """Finds the longest prefix that a slot holds.

        Args:
            hashes: Names of the blocks of a sequence, from its start.
        """
        # Whoever holds a block holds all before it, so the held ones can be bisected.
        num_blocks = bisect_left(hashes, True, key=lambda name: name not in self._holders)
        if num_blocks == 0:
            return None
        return PrefixMatch(next(iter(self._holders[hashes[num_blocks - 1]])), num_blocks)

    @property
    def expects_any(self) -> bool:
        """True while a running slot lacks blocks that its sequence is about to compute."""
        return bool(self._expected)

    def expect(self, kv_slot: int, hashes: list[bytes], num_blocks: int) -> None:
        """Says which blocks a slot holds once its sequence has been computed so far.

        Holds until the slot has them all, or no sequence runs in it any more.

        Args:
            kv_slot: Slot of a sequence that was just admitted.
            hashes: Names of its blocks, from its start.
            num_blocks: Blocks of the prefix that the slot has already.
        """
        if len(hashes) > num_blocks:
            self._expected[kv_slot] = hashes
            self._num_blocks_at_first[kv_slot] = num_blocks
            for name in hashes:
                self._expectants.setdefault(name, {})[kv_slot] = None

    def find_expected(self, hashes: Sequence[bytes]) -> ExpectedPrefix | None:
        """Finds the longest prefix that a slot holds before long, the first that was admitted.

        Args:
            hashes: Names of the blocks of a sequence, from its start.
        """
        num_blocks = bisect_left(hashes, True, key=lambda name: name not in self._expectants)
        if num_blocks == 0:
            return None
        kv_slot = next(iter(self._expectants[hashes[num_blocks - 1]]))
        num_new_blocks = num_blocks - self._num_blocks_at_first[kv_slot]
        return ExpectedPrefix(kv_slot, num_blocks, num_new_blocks)

    def num_blocks(self, kv_slot: int) -> int:
        """Blocks of a slot that can be found."""
        return len(self._chains.get(kv_slot, ()))

    def is_retained(self, kv_slot: int) -> bool:
        """True for a slot that no sequence runs in."""
        return kv_slot in self._retained

    def extend(self, kv_slot: int, hashes: Iterable[bytes]) -> None:
        """Makes further blocks of a slot known, in order."""
        chain = self._chains.setdefault(kv_slot, [])
        for name in hashes:
            chain.append(name)
            self._holders.setdefault(name, set()).add(kv_slot)
        if len(chain) >= len(self._expected.get(kv_slot, ())):
            self._expect_no_more(kv_slot)

    def cut(self, kv_slot: int, num_blocks: int) -> None:
        """Forgets all but the first blocks of a slot."""
        chain = self._chains.get(kv_slot, [])
        for name in chain[num_blocks:]:
            holders = self._holders[name]
            holders.remove(kv_slot)
            if not holders:
                del self._holders[name]
        del chain[num_blocks:]
        if not chain:
            self._chains.pop(kv_slot, None)

    def remove(self, kv_slot: int) -> None:
        """Forgets a slot."""
        self._expect_no_more(kv_slot)
        self.cut(kv_slot, 0)
        self._retained.pop(kv_slot, None)

    def retain(self, kv_slot: int) -> None:
        """Takes a slot for retained, and most recently used."""
        self._expect_no_more(kv_slot)
        self._retained[kv_slot] = None

    def resume(self, kv_slot: int) -> None:
        """Takes a retained slot for running again."""
        del self._retained[kv_slot]

    def touch(self, kv_slot: int) -> None:
        """Takes a slot for most recently used, if it is retained."""
        if kv_slot in self._retained:
            self._retained.move_to_end(kv_slot)

    def twin(self, kv_slot: int) -> int | None:
        """Another slot that holds all known blocks of this one; None when there is none."""
        holders = self._holders[self._chains[kv_slot][-1]]
        return next((other for other in holders if other != kv_slot), None)

    def covered_by(self, kv_slot: int) -> list[int]:
        """Other retained slots all of whose blocks this slot holds too."""
        chain = self._chains[kv_slot]
        return [
            other
            for other in self._retained
            if other != kv_slot
            and (num_blocks := len(self._chains[other])) <= len(chain)
            and chain[num_blocks - 1] == self._chains[other][-1]
        ]

    def check_integrity(self) -> None:
        """Asserts that both directions agree and that no retained slot is useless."""
        pairs = {(name, slot) for slot, chain in self._chains.items() for name in chain}
        held = {(name, slot) for name, slots in self._holders.items() for slot in slots}
        assert pairs == held, "the index names holders that hold something else"
        assert all(self._holders.values()), "a block without a holder is known"
        assert all(self._chains.get(slot) for slot in self._retained), "nothing is retained"
        awaited = {(name, slot) for slot, names in self._expected.items() for name in names}
        expected = {(name, slot) for name, slots in self._expectants.items() for slot in slots}
        assert awaited == expected, "a block is expected of a slot that computes another"
        assert all(self._expectants.values()), "a block is expected of no slot"
        assert self._expected.keys().isdisjoint(self._retained), "nothing comes to retained slots"
        for slot, names in self._expected.items():
            chain = self._chains.get(slot, [])
            assert len(chain) < len(names), "what is expected is there"
            assert chain == names[: len(chain)], "a slot computes another prefix"

    def _expect_no_more(self, kv_slot: int) -> None:
        self._num_blocks_at_first.pop(kv_slot, None)
        for name in self._expected.pop(kv_slot, ()):
            expectants = self._expectants[name]
            del expectants[kv_slot]
            if not expectants:
                del self._expectants[name]
