"""The blocks of a message, whole and as events: one after another, each begun and ended.

A text that is only blank, as models write between thinking and a call, is no block. A message has
one block at least.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Literal

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from coordinator.doors.http.divided_message import whole_calls
from coordinator.doors.http.schema.anthropic_answer import (
    AnswerBlock,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    SignatureDelta,
    TextAnswer,
    TextDelta,
    ThinkingAnswer,
    ThinkingDelta,
    ToolUseAnswer,
)

BlockEvent = BlockStart | BlockDelta | BlockStop
_Kind = Literal["text", "thinking", "tool_use"]

_SIGNATURE_BYTES = 16


def blocks_of(parts: Sequence[OutputPart], *, shows_thinking: bool) -> list[AnswerBlock]:
    """The blocks of a whole output; a call that was cut is left out.

    Args:
        parts: As `joined_parts` makes them.
        shows_thinking: Whether blocks of thinking have their text.
    """
    blocks: list[AnswerBlock] = []
    calls = iter(whole_calls(parts))
    for part in parts:
        match part:
            case ContentPart() if part.text.strip():
                blocks.append(TextAnswer(type="text", text=part.text))
            case ReasoningPart():
                digest = _digest()
                digest.update(_encoded(part.text))
                shown = part.text if shows_thinking else ""
                blocks.append(
                    ThinkingAnswer(type="thinking", thinking=shown, signature=digest.hexdigest())
                )
            case CallEnds():
                begins, arguments = next(calls)
                blocks.append(
                    ToolUseAnswer(
                        type="tool_use",
                        id=begins.call_id,
                        name=begins.name,
                        input=arguments,
                    )
                )
    blank = "".join(part.text for part in parts if isinstance(part, ContentPart))
    return blocks or [TextAnswer(type="text", text=blank)]


class BlockEvents:
    """Turns parts of an output into events.

    Args:
        shows_thinking: Whether blocks of thinking have their text.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking
        self._num_blocks = 0
        self._open: _Kind | None = None
        """Kind of the block that is not ended."""
        self._blank = ""
        """Blanks that a text began with, of which it is not known whether it has more."""
        self._digest = _digest()

    def push(self, parts: Sequence[OutputPart]) -> list[BlockEvent]:
        """The events of new parts."""
        return [event for part in parts for event in self._events(part)]

    def finish(self) -> list[BlockEvent]:
        """The events at the end."""
        if not self._num_blocks:
            return [*self._text(self._blank), *self._close()]
        return list(self._close())

    def _events(self, part: OutputPart) -> Iterator[BlockEvent]:
        match part:
            case ContentPart():
                text = part.text if self._open == "text" else self._blank + part.text
                if self._open != "text" and not text.strip():
                    self._blank = text
                else:
                    yield from self._text(text)
            case ReasoningPart():
                yield from self._begin(
                    "thinking", ThinkingAnswer(type="thinking", thinking="", signature="")
                )
                self._digest.update(_encoded(part.text))
                if self._shows_thinking:
                    yield self._delta(ThinkingDelta(type="thinking_delta", thinking=part.text))
            case CallBegins():
                call = ToolUseAnswer(type="tool_use", id=part.call_id, name=part.name, input="{}")
                yield from self._close()
                yield from self._begin("tool_use", call)
            case ArgumentsPart():
                yield self._delta(InputDelta(type="input_json_delta", partial_json=part.text))
            case CallEnds():
                yield from self._close()

    def _text(self, text: str) -> Iterator[BlockEvent]:
        self._blank = ""
        yield from self._begin("text", TextAnswer(type="text", text=""))
        yield self._delta(TextDelta(type="text_delta", text=text))

    def _begin(self, kind: _Kind, block: AnswerBlock) -> Iterator[BlockEvent]:
        """Begins a block, unless one of its kind is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        self._num_blocks += 1
        yield BlockStart(
            type="content_block_start", index=self._num_blocks - 1, content_block=block
        )

    def _close(self) -> Iterator[BlockEvent]:
        """Ends the block that is open, if one is."""
        self._blank = ""
        if self._open is None:
            return
        if self._open == "thinking":
            signature = self._digest.hexdigest()
            self._digest = _digest()
            yield self._delta(SignatureDelta(type="signature_delta", signature=signature))
        self._open = None
        yield BlockStop(type="content_block_stop", index=self._num_blocks - 1)

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> BlockDelta:
        return BlockDelta(type="content_block_delta", index=self._num_blocks - 1, delta=delta)


def _digest() -> blake2b:
    """What a signature is made by: nobody checks it, and clients ask for one."""
    return blake2b(digest_size=_SIGNATURE_BYTES)


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
