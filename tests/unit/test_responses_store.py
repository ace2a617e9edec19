"""What is kept of responses: for whom, for how long, and in how much memory."""

import pytest

from coordinator.core.request_spec import ChatMessage
from coordinator.doors.access.callers import Caller
from coordinator.doors.http.responses_items import Item
from coordinator.doors.http.responses_store import (
    KeptResponse,
    ResponseStore,
    Turn,
    check_num_items,
    resolved,
)
from coordinator.doors.http.schema.responses_items import MAX_ITEMS
from stagecoach.contract.errors import InvalidArgumentError

ALICE, BOB = Caller("alice"), Caller("bob")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def item(item_id: str, text: str = "x") -> Item:
    message = ChatMessage(role="user", content=text)
    return Item(message, f'{{"id":"{item_id}","text":"{text}"}}', id=item_id)


def turn(name: str, previous: Turn | None = None, text: str = "x") -> Turn:
    return Turn(previous, [item(f"msg_{name}_in0", text)], [item(f"msg_{name}_0")])


def keep(store: ResponseStore, name: str, of: Turn, owner: Caller | None = None) -> KeptResponse:
    response = KeptResponse(f"resp_{name}", owner, "{}", of)
    store.keep(response)
    return response


def test_only_its_owner_finds_a_response() -> None:
    store = ResponseStore()
    keep(store, "a", turn("a"), ALICE)
    keep(store, "b", turn("b"))
    assert store.find("resp_a", ALICE) is not None
    assert store.find("resp_b", None) is not None
    assert [store.find("resp_a", BOB), store.find("resp_a", None)] == [None, None]
    assert store.find("resp_b", ALICE) is None


def test_a_response_is_forgotten_after_a_while() -> None:
    clock = Clock()
    store = ResponseStore(clock, max_age_s=10)
    keep(store, "a", turn("a"))
    clock.now_s = 5
    keep(store, "b", turn("b"))
    clock.now_s = 9.9
    assert store.find("resp_a", None) is not None
    clock.now_s = 10
    assert store.find("resp_a", None) is None
    assert store.find("resp_b", None) is not None
    clock.now_s = 15
    assert store.find("resp_b", None) is None
    assert store.num_bytes == 0


def test_the_oldest_goes_when_there_are_too_many() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        keep(store, name, turn(name))
    assert [store.find(f"resp_{name}", None) is not None for name in "abc"] == [False, True, True]


def test_the_oldest_go_when_they_take_too_much_memory() -> None:
    store = ResponseStore(max_bytes=100_000)
    for name in "abcd":
        keep(store, name, turn(name, text="y" * 20_000))
        assert store.num_bytes <= 100_000
    assert [store.find(f"resp_{name}", None) is not None for name in "abcd"] == [
        *(False, False, True, True),
    ]
    keep(store, "e", turn("e", text="y" * 60_000))
    assert store.find("resp_e", None) is None
    assert store.num_bytes == 0


def test_characters_of_more_than_a_byte_count_for_what_they_take() -> None:
    plain, wide = turn("a", text="y" * 1000), turn("a", text="\u65e5" * 1000)
    assert wide.num_bytes > plain.num_bytes + 2000


def test_a_turn_stays_and_counts_once_while_any_response_leads_to_it() -> None:
    store = ResponseStore()
    first = turn("a", text="y" * 10_000)
    kept = keep(store, "a", first)
    alone = store.num_bytes
    branches = [keep(store, name, turn(name, first)) for name in "bc"]
    assert store.num_bytes < alone + 5_000
    store.delete(kept)
    assert store.num_bytes > 10_000
    assert [one.id for one in branches[0].turn.items] == [
        *("msg_a_in0", "msg_a_0", "msg_b_in0", "msg_b_0"),
    ]
    store.delete(branches[0])
    assert store.num_bytes > 10_000
    store.delete(branches[1])
    assert store.num_bytes == 0


def test_a_turn_that_was_given_up_counts_again_when_a_later_one_leads_to_it() -> None:
    store = ResponseStore()
    first = turn("a")
    kept = keep(store, "a", first)
    both = turn("b", first)  # of a request that runs while the first response is deleted
    store.delete(kept)
    assert store.num_bytes == 0
    kept = keep(store, "b", both)
    assert store.num_bytes > first.num_bytes + both.num_bytes
    store.delete(kept)
    assert store.num_bytes == 0


def test_a_reference_stands_for_an_item_that_its_owner_has() -> None:
    store = ResponseStore()
    keep(store, "a", turn("a", text="hello"), ALICE)
    given = [item("new"), Item(None, "{}", reference="msg_a_in0")]
    assert resolved(given, store, ALICE) == [item("new"), item("msg_a_in0", "hello")]
    for owner, reference in ((BOB, "msg_a_in0"), (ALICE, "msg_a_7"), (ALICE, "nothing")):
        with pytest.raises(InvalidArgumentError, match="no item of that id is kept") as caught:
            resolved([item("new"), Item(None, "{}", reference=reference)], store, owner)
        assert caught.value.field == "input[1].id"


def test_a_conversation_has_a_longest() -> None:
    check_num_items(MAX_ITEMS)
    with pytest.raises(InvalidArgumentError, match=f"{MAX_ITEMS + 1} items"):
        check_num_items(MAX_ITEMS + 1)
