"""What the output of a conversation consists of: content, thinking, and calls of tools."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeGuard


@dataclass(frozen=True, slots=True)
class ContentPart:
    """What the user reads."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call begins; its arguments follow."""

    index: int
    """Number of the call in its output, from 0."""
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """More of the arguments of the call that began last: a piece of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """The arguments of a call are whole."""

    index: int


_TextPart = ContentPart | ReasoningPart | ArgumentsPart
OutputPart = ContentPart | ReasoningPart | CallBegins | ArgumentsPart | CallEnds


def joined_parts(parts: Iterable[OutputPart]) -> tuple[OutputPart, ...]:
    """The same output in as few parts as there can be."""
    joined: list[OutputPart] = []
    texts: list[str] = []
    """The texts of parts that are still to be joined, all like `last`."""
    last: _TextPart | None = None
    for part in parts:
        if last is not None and _is_like(part, last):
            texts.append(part.text)
            continue
        if last is not None:
            joined.append(replace(last, text="".join(texts)))
        last = None
        if isinstance(part, _TextPart):
            last, texts = part, [part.text]
        else:
            joined.append(part)
    if last is not None:
        joined.append(replace(last, text="".join(texts)))
    return tuple(joined)


def _is_like(part: OutputPart, last: _TextPart) -> TypeGuard[_TextPart]:
    """Whether a part goes on with what the last one brought."""
    if isinstance(part, ArgumentsPart) and isinstance(last, ArgumentsPart):
        return part.index == last.index
    return type(part) is type(last)
