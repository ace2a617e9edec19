"""Items of an output that are being made."""

from typing import NamedTuple

from coordinator.doors.http.responses_tools import FunctionOf
from coordinator.doors.http.schema.responses_answer import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)
from coordinator.doors.http.schema.responses_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from coordinator.doors.http.token_logprobs import Pair


class Place(NamedTuple):
    """Where an item stands."""

    id: str
    output_index: int
    """Its number in the output, from 0."""


class _Texts:
    """Joins a text that comes in pieces."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._texts)

    def add(self, text: str) -> None:
        self._texts.append(text)


class OpenMessage(_Texts):
    """What the user reads."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.pairs: list[Pair] = []
        """Log-probabilities of its tokens."""

    def delta(self, text: str, number: int) -> TextDelta:
        """Adds text; returns the event of it."""
        self.add(text)
        return TextDelta(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            delta=text,
        )

    def done(self, number: int) -> Event:
        """The event that the text is whole."""
        return TextDone(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            text=self.text,
        )

    def part(self, text: str) -> OutputText:
        """The part of the item, with a text."""
        return OutputText(text=text)

    def item(self, status: ItemStatus) -> OutputItem:
        """The item as it is shown."""
        content = [] if status == "in_progress" else [self.part(self.text)]
        return OutputMessage(id=self.place.id, status=status, content=content)


class OpenReasoning(_Texts):
    """What the model thinks."""

    def delta(self, text: str, number: int) -> ReasoningDelta:
        """See `OpenMessage.delta`."""
        self.add(text)
        return ReasoningDelta(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            delta=text,
        )

    def done(self, number: int) -> Event:
        """See `OpenMessage.done`."""
        return ReasoningDone(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            text=self.text,
        )

    def part(self, text: str) -> ReasoningText:
        """See `OpenMessage.part`."""
        return ReasoningText(text=text)

    def item(self, status: ItemStatus) -> OutputItem:
        """See `OpenMessage.item`."""
        content = [] if status == "in_progress" else [self.part(self.text)]
        return OutputReasoning(id=self.place.id, status=status, content=content)


class OpenCall(_Texts):
    """A call of a function.

    Args:
        place: Where it stands.
        call_id: By which the answer to it names it.
        function: That it calls.
    """

    def __init__(self, place: Place, call_id: str, function: FunctionOf) -> None:
        super().__init__(place)
        self._call_id = call_id
        self._function = function

    def delta(self, text: str, number: int) -> ArgumentsDelta:
        """See `OpenMessage.delta`."""
        self.add(text)
        return ArgumentsDelta(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            delta=text,
        )

    def done(self, number: int) -> Event:
        """See `OpenMessage.done`."""
        return ArgumentsDone(
            sequence_number=number,
            item_id=self.place.id,
            output_index=self.place.output_index,
            name=self._function.name,
            arguments=self.text,
        )

    def part(self, _text: str) -> None:
        """See `OpenMessage.part`: it has none."""

    def item(self, status: ItemStatus) -> OutputItem:
        """See `OpenMessage.item`."""
        return OutputFunctionCall(
            id=self.place.id,
            status=status,
            call_id=self._call_id,
            name=self._function.name,
            namespace=self._function.namespace,
            arguments=self.text,
        )


OpenItem = OpenMessage | OpenReasoning | OpenCall
