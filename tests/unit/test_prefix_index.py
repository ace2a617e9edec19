"""The index against a scan of all chains, and its order of use."""

from coordinator.scheduler.prefix_index import (
    PrefixIndex,
    PrefixMatch,
    block_hashes,
    chain_hash,
    root_hash,
)


def names(text: str, *, salt: str | None = None) -> list[bytes]:
    """Names of blocks of one token each."""
    chain = [root_hash(salt)]
    for letter in text:
        chain.append(chain_hash(chain[-1], [ord(letter)]))
    return chain[1:]


def num_common(one: str, other: str) -> int:
    return next(n for n in range(len(one), -1, -1) if other.startswith(one[:n]))


def create_index(**chains: str) -> PrefixIndex:
    """An index of retained slots `s0`, `s1`, ..., the first the least recently used."""
    index = PrefixIndex()
    for name, text in chains.items():
        index.extend(int(name[1:]), names(text))
        index.retain(int(name[1:]))
    index.check_integrity()
    return index


def test_a_name_depends_on_the_block_and_on_all_before_it() -> None:
    assert names("abc")[:2] == names("abd")[:2]
    assert names("abc")[2] != names("xbc")[2]
    assert len({*names("aaa")}) == 3
    assert chain_hash(root_hash(None), [1, 2]) != chain_hash(root_hash(None), [2, 1])
    assert chain_hash(root_hash(None), [1, 256]) != chain_hash(root_hash(None), [257, 0])


def test_salts_share_no_name() -> None:
    assert not {*names("abc")} & {*names("abc", salt="a")}
    assert not {*names("abc", salt="a")} & {*names("abc", salt="b")}
    assert names("abc", salt="a") == names("abc", salt="a")
    assert names("a", salt="\ud800") != names("a", salt="\udfff")


def test_the_longest_prefix_is_found() -> None:
    index = create_index(s0="abc", s1="abxyz", s2="b")
    assert index.find(names("abxyq")) == PrefixMatch(1, 4)
    assert index.find(names("abcdefgh")) == PrefixMatch(0, 3)
    assert index.find(names("b")) == PrefixMatch(2, 1)
    assert index.find(names("xabc")) is None
    assert index.find([]) is None
    match = index.find(names("abq"))
    assert match is not None
    assert (match.kv_slot in {0, 1}, match.num_blocks) == (True, 2)


def test_the_longest_prefix_is_that_of_a_scan() -> None:
    texts = [f"{number:04b}" for number in range(16)]
    index = PrefixIndex()
    chains = [texts[3], texts[6][:3], texts[9], texts[15][:2]]
    for kv_slot, text in enumerate(chains):
        index.extend(kv_slot, names(text))
    for text in texts:
        longest = max(num_common(text, chain) for chain in chains)
        match = index.find(names(text))
        assert (match.num_blocks if match else 0) == longest


def test_what_was_cut_or_removed_is_not_found() -> None:
    index = create_index(s0="abc", s1="ab")
    index.cut(0, 2)
    assert index.find(names("abc")) in (PrefixMatch(0, 2), PrefixMatch(1, 2))
    index.remove(0)
    assert index.find(names("abc")) == PrefixMatch(1, 2)
    index.remove(1)
    assert index.find(names("abc")) is None
    assert list(index.retained) == []
    index.check_integrity()


def test_retained_slots_come_in_the_order_of_their_last_use() -> None:
    index = create_index(s0="a", s1="b", s2="c")
    index.touch(0)
    index.touch(7)
    assert list(index.retained) == [1, 2, 0]
    index.resume(2)
    assert list(index.retained) == [1, 0]
    assert not index.is_retained(2)


def test_a_twin_holds_all_and_a_covered_slot_nothing_more() -> None:
    index = create_index(s0="ab", s1="abc", s2="abd", s3="x")
    assert index.twin(0) in {1, 2}
    assert index.twin(1) is None
    assert index.covered_by(1) == [0]
    assert index.covered_by(0) == []


def test_the_names_of_a_prompt_are_those_of_its_blocks_one_by_one() -> None:
    assert list(block_hashes("s", tuple(map(ord, "abcde")), 1)) == names("abcde", salt="s")
    assert list(block_hashes(None, [1, 2, 3, 4, 5], 2)) == [
        one := chain_hash(root_hash(None), [1, 2]),
        chain_hash(one, [3, 4]),
    ]
    assert list(block_hashes(None, [1], 2)) == []
