"""Responses that are kept for a while, so that a later request can go on with one.

Each keeps what its own request brought to the conversation, and leads to the turn before. A turn
stays as long as any response that is kept leads to it.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from coordinator.doors.access.callers import Caller
from coordinator.doors.http.responses_items import Item, response_of
from coordinator.doors.http.schema.responses_items import MAX_ITEMS
from stagecoach.contract.errors import InvalidArgumentError

MAX_RESPONSES = 4096
MAX_KEPT_BYTES = 64 << 20
"""Most bytes of all that is kept."""
MAX_AGE_S = 24 * 60 * 60.0

_ITEM_BYTES = 512
"""Objects of one item, beside its texts."""


class Turn:
    """What one request brought to a conversation.

    Args:
        previous: The turn that it goes on from, if there is one.
        given: Items of its input, with their ids.
        made: Items of its output, with their ids.
    """

    def __init__(
        self, previous: "Turn | None", given: Sequence[Item], made: Sequence[Item]
    ) -> None:
        self.previous = previous
        self.given = given
        self.made = made
        self.num_items: int = (
            (0 if previous is None else previous.num_items) + len(given) + len(made)
        )
        self.num_bytes = sum(map(_num_bytes, (*given, *made)))
        self.num_users = 0
        """Responses that are kept, and later turns, that lead here."""
        self._by_id = {item.id: item for item in (*given, *made)}

    def item(self, item_id: str) -> Item | None:
        """The item of this turn that has an id."""
        return self._by_id.get(item_id)

    @property
    def items(self) -> list[Item]:
        """All items of the conversation up to here, oldest first."""
        turns = list(self)[::-1]
        return [item for turn in turns for item in (*turn.given, *turn.made)]

    @property
    def input_items(self) -> list[Item]:
        """Items of the conversation that the output of this turn continues, oldest first."""
        before = [] if self.previous is None else self.previous.items
        return [*before, *self.given]

    def __iter__(self) -> "Iterator[Turn]":
        """This turn and those before it, latest first."""
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.previous


class KeptResponse:
    """A response that is kept.

    Args:
        response_id: Its id.
        owner: Who made it; None without API keys.
        text: The response as JSON.
        turn: The end of its conversation.
    """

    def __init__(self, response_id: str, owner: Caller | None, text: str, turn: Turn) -> None:
        self.id = response_id
        self.owner = owner
        self.text = text
        self.turn = turn
        self.expires_s = 0.0


class ResponseStore:
    """Keeps responses, and gives each to whoever made it. Event loop only.

    The oldest go when there are too many or they take too much memory.

    Args:
        clock: Seconds that never go back.
        max_responses: Most that are kept.
        max_bytes: Most memory of all that is kept.
        max_age_s: Seconds after which a response is forgotten.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_KEPT_BYTES,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._clock = clock
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._responses: dict[str, KeptResponse] = {}
        """By id, oldest first."""
        self.num_bytes = 0
        """Memory of all that is kept."""

    def keep(self, response: KeptResponse) -> None:
        """Keeps a response, which is forgotten at once if it alone is too large."""
        response.expires_s = self._clock() + self._max_age_s
        self._responses[response.id] = response
        self.num_bytes += sys.getsizeof(response.text)
        self._use(response.turn)
        while len(self._responses) > self._max_responses or self.num_bytes > self._max_bytes:
            self._forget(next(iter(self._responses.values())))
        self._forget_old()

    def find(self, response_id: str, owner: Caller | None) -> KeptResponse | None:
        """The response of an id, if its owner asks and it is still kept."""
        self._forget_old()
        response = self._responses.get(response_id)
        return response if response is not None and response.owner == owner else None

    def delete(self, response: KeptResponse) -> None:
        """Forgets a response that `find` returned."""
        self._forget(response)

    def _forget_old(self) -> None:
        now_s = self._clock()
        while self._responses:
            oldest = next(iter(self._responses.values()))
            if oldest.expires_s > now_s:
                return
            self._forget(oldest)

    def _forget(self, response: KeptResponse) -> None:
        del self._responses[response.id]
        self.num_bytes -= sys.getsizeof(response.text)
        self._leave(response.turn)

    def _use(self, turn: Turn) -> None:
        """Counts one more that leads to a turn."""
        for one in turn:
            one.num_users += 1
            if one.num_users > 1:
                return
            self.num_bytes += one.num_bytes

    def _leave(self, turn: Turn) -> None:
        """Counts one fewer that leads to a turn."""
        for one in turn:
            one.num_users -= 1
            if one.num_users:
                return
            self.num_bytes -= one.num_bytes


def resolved(items: list[Item], store: ResponseStore, owner: Caller | None) -> list[Item]:
    """Puts kept items into the place of references to them.

    Raises:
        InvalidArgumentError: One is not kept.
    """
    found = []
    for index, item in enumerate(items):
        if item.reference is None:
            found.append(item)
            continue
        response = store.find(response_of(item.reference), owner)
        kept = None if response is None else response.turn.item(item.reference)
        if kept is None:
            field = f"input[{index}].id"
            raise InvalidArgumentError(
                f"{field} is {item.reference[:64]!r}, and no item of that id is kept: send the item"
                " itself",
                field=field,
            )
        found.append(kept)
    return found


def check_num_items(num_items: int) -> None:
    """Refuses a conversation of too many items.

    Raises:
        InvalidArgumentError: There are too many.
    """
    if num_items > MAX_ITEMS:
        raise InvalidArgumentError(
            f"input and the responses before it have {num_items} items, at most {MAX_ITEMS} are"
            " taken",
            field="input",
        )


def _num_bytes(item: Item) -> int:
    texts = [item.text]
    if item.message is not None:
        texts += item.message.content, item.message.reasoning or ""
        texts += (call.arguments for call in item.message.tool_calls)
    return _ITEM_BYTES + sum(map(sys.getsizeof, texts))
