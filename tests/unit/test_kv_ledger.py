from coordinator.scheduler.kv_ledger import KvLedger


def test_grow_takes_whole_blocks_and_only_what_is_lacking() -> None:
    ledger = KvLedger(num_blocks=10, block_size=4)
    assert ledger.admit("a", 1, 100)
    assert ledger.num_free_blocks == 9
    assert ledger.grow("a", 4)
    assert ledger.num_free_blocks == 9
    assert ledger.grow("a", 9)
    assert ledger.num_free_blocks == 7
    assert ledger.grow("a", 2)
    assert ledger.num_held_blocks("a") == 3


def test_what_does_not_fit_changes_nothing() -> None:
    ledger = KvLedger(num_blocks=3, block_size=4)
    assert ledger.admit("a", 8, 8)
    assert not ledger.admit("b", 5, 5)
    assert not ledger.grow("a", 13)
    assert ledger.num_free_blocks == 1
    assert ledger.num_held_blocks("a") == 2
    assert ledger.num_held_blocks("b") == 0
    ledger.check_integrity({"a": 8})


def test_admission_leaves_a_block_for_each_sequence_that_may_grow() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert ledger.admit("a", 4, 8)
    assert ledger.admit("b", 4, 4)
    assert not ledger.admit("c", 8, 8)
    assert ledger.admit("d", 4, 4)
    ledger.check_integrity({"a": 4, "b": 4, "d": 4})
    assert ledger.grow("a", 5)
    assert ledger.num_free_blocks == 0


def test_a_sequence_that_cannot_grow_any_more_needs_no_headroom() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert ledger.admit("a", 4, 8)
    assert ledger.grow("a", 8)
    assert ledger.admit("b", 8, 8)
    assert ledger.num_free_blocks == 0


def test_release_gives_back_blocks_and_headroom() -> None:
    ledger = KvLedger(num_blocks=4, block_size=4)
    assert ledger.admit("a", 12, 16)
    ledger.release("a")
    assert ledger.num_free_blocks == 4
    assert ledger.admit("b", 16, 16)
    ledger.check_integrity({"b": 16})
