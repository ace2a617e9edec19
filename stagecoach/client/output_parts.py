"""What an output that is divided consists of, and the calls that it asks for. No I/O."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stagecoach.v1 import generation_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks for."""

    call_id: str
    """By which the message that answers it names it."""
    name: str
    """The tool's name."""
    arguments: str
    """A JSON object."""

    @property
    def parsed_arguments(self) -> dict[str, object]:
        """The arguments by name.

        Raises:
            ValueError: They are not JSON, as those of a model never are.
        """
        arguments: dict[str, object] = json.loads(self.arguments)
        return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPart:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPart:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBegins:
    """A call of a tool begins; its arguments follow."""

    index: int
    """Number of the call in its output, from 0."""
    call_id: str
    name: str
    """The tool's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentsPart:
    """More of the arguments of the call that began last."""

    index: int
    """Number of the call."""
    text: str
    """A piece of a JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnds:
    """A call of a tool is whole."""

    index: int
    """Number of the call."""
    call: ToolCall


OutputPart = ContentPart | ReasoningPart | CallBegins | ArgumentsPart | CallEnds


class OutputReader:
    """Reads the parts of one output, and gathers what it thought and asked for."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        """Calls that are whole."""
        self._reasoning: list[str] = []
        self._begun: CallBegins | None = None
        self._arguments: list[str] = []

    @property
    def reasoning(self) -> str:
        """All that was thought so far."""
        return "".join(self._reasoning)

    def read(self, text: str, parts: Iterable[generation_pb2.OutputPart]) -> tuple[OutputPart, ...]:
        """Reads what is new.

        Args:
            text: The content of it.
            parts: All of it; none where it is content alone.
        """
        return tuple(self._parts(parts)) or ((ContentPart(text=text),) if text else ())

    def _parts(self, parts: Iterable[generation_pb2.OutputPart]) -> Iterator[OutputPart]:
        for part in parts:
            match part.WhichOneof("part"):
                case "content":
                    yield ContentPart(text=part.content)
                case "reasoning":
                    self._reasoning.append(part.reasoning)
                    yield ReasoningPart(text=part.reasoning)
                case "call_begins":
                    begins = part.call_begins
                    self._begun = CallBegins(
                        index=begins.index, call_id=begins.id, name=begins.name
                    )
                    self._arguments = []
                    yield self._begun
                case "arguments":
                    self._arguments.append(part.arguments.text)
                    yield ArgumentsPart(index=part.arguments.index, text=part.arguments.text)
                case "call_ends" if self._begun is not None:
                    call = ToolCall(
                        call_id=self._begun.call_id,
                        name=self._begun.name,
                        arguments="".join(self._arguments),
                    )
                    self.calls.append(call)
                    yield CallEnds(index=part.call_ends.index, call=call)
