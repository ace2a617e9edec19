from coordinator.scheduler.kv_ledger import KvLedger
from coordinator.scheduler.prefix_index import PrefixMatch


def admit(
    ledger: KvLedger,
    kv_slot: int,
    num_tokens: int,
    max_num_tokens: int,
    prefix: PrefixMatch | None = None,
) -> bool:
    """What the KV memory does with a sequence that nothing must be evicted for."""
    if not ledger.fits(num_tokens, prefix):
        return False
    ledger.start(kv_slot, max_num_tokens, prefix)
    ledger.grow(kv_slot, ledger.num_lacking_blocks(kv_slot, num_tokens))
    return True


def num_held(ledger: KvLedger, kv_slot: int) -> int:
    table = ledger._tables.get(kv_slot)
    return len(table.blocks) if table else 0


def test_a_sequence_lacks_whole_blocks_and_only_what_it_does_not_hold() -> None:
    ledger = KvLedger(num_blocks=10, block_size=4)
    assert admit(ledger, 0, 1, 100)
    assert ledger.num_free_blocks == 9
    assert ledger.num_lacking_blocks(0, 4) == 0
    assert ledger.num_lacking_blocks(0, 9) == 2
    ledger.grow(0, 2)
    assert (ledger.num_free_blocks, num_held(ledger, 0)) == (7, 3)
    assert ledger.num_lacking_blocks(0, 2) == 0


def test_what_does_not_fit_is_not_admitted() -> None:
    ledger = KvLedger(num_blocks=3, block_size=4)
    assert admit(ledger, 0, 8, 8)
    assert not ledger.fits(5)
    assert ledger.fits(4)
    assert num_held(ledger, 1) == 0
    ledger.check_integrity({0: 8}, {})


def test_admission_leaves_a_block_for_each_sequence_that_may_grow() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert admit(ledger, 0, 4, 8)
    assert admit(ledger, 1, 4, 4)
    assert not admit(ledger, 2, 8, 8)
    assert admit(ledger, 3, 4, 4)
    ledger.check_integrity({0: 4, 1: 4, 3: 4}, {})
    ledger.grow(0, 1)
    assert ledger.num_free_blocks == 0


def test_a_sequence_that_cannot_grow_any_more_needs_no_headroom() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert admit(ledger, 0, 4, 8)
    ledger.grow(0, 1)
    assert admit(ledger, 1, 8, 8)
    assert ledger.num_free_blocks == 0


def test_release_gives_back_blocks_and_headroom() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert admit(ledger, 0, 12, 16)
    ledger.release(0)
    assert ledger.num_free_blocks == ledger.num_vacant_blocks == 4
    assert admit(ledger, 1, 16, 16)
    ledger.check_integrity({1: 16}, {})


def test_blocks_that_sequences_share_count_once_until_the_last_lets_go() -> None:
    ledger = KvLedger(num_blocks=6, block_size=4)
    assert admit(ledger, 0, 12, 12)
    assert admit(ledger, 1, 12, 12, PrefixMatch(0, 2))
    assert ledger.num_free_blocks == 2
    assert ledger.fits(16, PrefixMatch(1, 2))
    assert not ledger.fits(16, PrefixMatch(1, 1))
    ledger.release(0)
    assert ledger.num_free_blocks == 3
    ledger.release(1)
    assert ledger.num_free_blocks == 6


def test_retained_blocks_are_free_but_not_vacant_and_fit_only_once() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert admit(ledger, 0, 10, 12)
    ledger.retain(0, 2)
    assert (ledger.num_free_blocks, ledger.num_vacant_blocks) == (4, 2)
    assert ledger.fits(16, PrefixMatch(0, 2))
    assert not ledger.fits(17, PrefixMatch(0, 2))
    ledger.check_integrity({}, {0: 2})


def test_a_slot_that_is_taken_over_keeps_the_prefix_and_no_more() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert admit(ledger, 0, 12, 12)
    ledger.retain(0, 3)
    ledger.start(0, 16, PrefixMatch(0, 2))
    assert (ledger.num_free_blocks, ledger.num_vacant_blocks) == (2, 2)
    ledger.check_integrity({0: 8}, {})


def test_trimming_takes_only_what_no_other_slot_holds() -> None:
    ledger = KvLedger(num_blocks=8, block_size=4)
    assert admit(ledger, 0, 16, 16)
    ledger.retain(0, 4)
    ledger.start(1, 12, PrefixMatch(0, 2))
    assert ledger.trim(0, 1) == 3
    assert ledger.num_vacant_blocks == 5
    assert ledger.trim(0, 8) == 0, "what is left is also in slot 1"
    assert ledger.num_vacant_blocks == 6
    ledger.release(0)
    assert ledger.num_vacant_blocks == 6
    ledger.check_integrity({1: 8}, {})
