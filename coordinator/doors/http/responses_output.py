"""The output of a response: its items as they come, and the events that tell of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from coordinator.core.request import FinishReason
from coordinator.doors.http.answer import SpellToken
from coordinator.doors.http.responses_items import Item, item_id, item_of_output
from coordinator.doors.http.responses_open_items import (
    OpenCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
    Place,
)
from coordinator.doors.http.responses_tools import FunctionOf
from coordinator.doors.http.schema.responses_answer import (
    ItemStatus,
    OutputItem,
    OutputText,
    ReasoningText,
)
from coordinator.doors.http.schema.responses_events import Event, ItemEvent, PartEvent
from coordinator.doors.http.token_logprobs import Pair, token_logprobs


class Told(NamedTuple):
    """An event, and what stands in its empty lists of log-probabilities, in order."""

    event: Event
    logprobs: Sequence[Sequence[Pair]] = ()


class MadeItem(NamedTuple):
    """A whole item."""

    item: OutputItem
    logprobs: Sequence[Pair] = ()
    """Log-probabilities of a message, for its empty list."""

    @property
    def kept(self) -> Item:
        """The item as a later request finds it."""
        return item_of_output(self.item)


class Output:
    """Collects the items of one output, and writes the events of each.

    Args:
        response_id: Id of the response.
        functions: What a call of each name is a call of.
        spell: Spells the tokens whose log-probabilities are shown; None: none are wanted.
    """

    def __init__(
        self, response_id: str, functions: Mapping[str, FunctionOf], spell: SpellToken | None
    ) -> None:
        self.items: list[MadeItem] = []
        """Items that are whole."""
        self._response_id = response_id
        self._functions = functions
        self._spell = spell
        self._open: OpenItem | None = None
        self._pending: list[Pair] = []
        """Tokens whose text is not known to belong to a message yet."""
        self._num_events = 0

    def next_number(self) -> int:
        """The number of the next event."""
        self._num_events += 1
        return self._num_events - 1

    def take(self, event: TokensEvent) -> Iterator[Told]:
        """Takes in new output."""
        if self._spell is not None:
            self._pending += zip(event.token_ids, event.logprobs, strict=True)
        yield from self._parts(event.text, event.parts)

    def end(self, end: Finished) -> Iterator[Told]:
        """Takes in what was held back, and ends the last item."""
        yield from self._parts(end.text, end.parts)
        if self._open is None and not self.items:
            yield from self._begin(OpenMessage(self._place("message")))
        if isinstance(self._open, OpenMessage):
            self._open.pairs += self._pending
        is_cut = end.finish_reason is FinishReason.LENGTH
        yield from self._close("incomplete" if is_cut else "completed")

    def _parts(self, text: str, parts: Sequence[OutputPart]) -> Iterator[Told]:
        if text and not parts:
            parts = (ContentPart(text),)
        for part in parts:
            match part:
                case ContentPart():
                    if not isinstance(self._open, OpenMessage):
                        yield from self._begin(OpenMessage(self._place("message")))
                    yield self._content(part.text)
                case ReasoningPart():
                    if not isinstance(self._open, OpenReasoning):
                        yield from self._begin(OpenReasoning(self._place("reasoning")))
                    yield Told(self._opened.delta(part.text, self.next_number()))
                case CallBegins():
                    place = self._place("function_call")
                    yield from self._begin(OpenCall(place, part.call_id, self._function(part.name)))
                case ArgumentsPart():
                    yield Told(self._opened.delta(part.text, self.next_number()))
                case CallEnds():
                    self._pending.clear()
                    yield from self._close("completed")

    def _content(self, text: str) -> Told:
        message = self._opened
        assert isinstance(message, OpenMessage), "content is of a message"
        new, self._pending = self._pending, []
        message.pairs += new
        delta = message.delta(text, self.next_number())
        if self._spell is not None:
            delta.logprobs = token_logprobs(new, self._spell)
        return Told(delta)

    def _function(self, name: str) -> FunctionOf:
        return self._functions.get(name) or FunctionOf(name, None)

    def _place(self, kind: str) -> Place:
        index = len(self.items) + (self._open is not None)
        return Place(item_id(kind, self._response_id, str(index)), index)

    @property
    def _opened(self) -> OpenItem:
        assert self._open is not None, "an item goes on that never began"
        return self._open

    def _begin(self, item: OpenItem) -> Iterator[Told]:
        yield from self._close("completed")
        if not isinstance(item, OpenMessage):
            self._pending.clear()
        self._open = item
        yield Told(
            ItemEvent(
                type="response.output_item.added",
                sequence_number=self.next_number(),
                output_index=item.place.output_index,
                item=item.item("in_progress"),
            )
        )
        part = item.part("")
        if part is not None:
            yield Told(self._part_event("response.content_part.added", item, part))

    def _part_event(
        self,
        kind: Literal["response.content_part.added", "response.content_part.done"],
        item: OpenItem,
        part: OutputText | ReasoningText,
    ) -> PartEvent:
        return PartEvent(
            type=kind,
            sequence_number=self.next_number(),
            item_id=item.place.id,
            output_index=item.place.output_index,
            part=part,
        )

    def _close(self, status: ItemStatus) -> Iterator[Told]:
        item = self._open
        if item is None:
            return
        self._open = None
        pairs = [item.pairs] if isinstance(item, OpenMessage) and item.pairs else []
        if not (isinstance(item, OpenCall) and status == "incomplete"):
            yield Told(item.done(self.next_number()), pairs)
        part = item.part(item.text)
        if part is not None:
            yield Told(self._part_event("response.content_part.done", item, part), pairs)
        made = MadeItem(item.item(status), pairs[0] if pairs else ())
        self.items.append(made)
        yield Told(
            ItemEvent(
                type="response.output_item.done",
                sequence_number=self.next_number(),
                output_index=item.place.output_index,
                item=made.item,
            ),
            pairs,
        )
