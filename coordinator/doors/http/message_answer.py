"""Writes what `/v1/messages` answers."""

from collections.abc import Sequence

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.output_parts import ContentPart, OutputPart
from coordinator.core.request import FinishReason
from coordinator.doors.http.answer import ChoiceOutput
from coordinator.doors.http.event_stream import StreamForm
from coordinator.doors.http.message_blocks import BlockEvents, blocks_of
from coordinator.doors.http.schema.anthropic_answer import (
    AnswerBlock,
    AssistantAnswer,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputTokensDetails,
    StopReason,
)
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.written_objects import json_text


def _named(event: ResponseModel) -> bytes:
    """A server-sent event with its type as its name, by which clients choose what they read."""
    name = getattr(event, "type").encode()  # noqa: B009 - all events of this API have one
    return b"event: %b\ndata: %b\n\n" % (name, json_text(event).encode())


_STREAM = StreamForm(write=_named, alive=b'event: ping\ndata: {"type":"ping"}\n\n')


class MessageAnswer:
    """A `SoleWriter`.

    Args:
        message_id: Id of the message.
        model: Name of the model.
        shows_thinking: Whether blocks of thinking have their text.
    """

    form = _STREAM

    def __init__(self, message_id: str, model: str, *, shows_thinking: bool) -> None:
        self._id = message_id
        self._model = model
        self._shows_thinking = shows_thinking
        self._blocks = BlockEvents(shows_thinking=shows_thinking)

    def opening(self, num_prompt_tokens: int) -> Sequence[MessageEvent]:
        """See `SoleWriter.opening`; what the cache holds of the prompt is told at the end."""
        usage = MessageUsage(
            input_tokens=num_prompt_tokens,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=0,
            output_tokens=0,
        )
        return [MessageStart(type="message_start", message=self._message([], usage))]

    def tokens(self, event: TokensEvent) -> Sequence[MessageEvent]:
        """See `SoleWriter.tokens`."""
        return self._blocks.push(_parts(event.text, event.parts))

    def ending(self, end: Finished) -> Sequence[MessageEvent]:
        """See `SoleWriter.ending`."""
        return [
            *self._blocks.push(_parts(end.text, end.parts)),
            *self._blocks.finish(),
            MessageDelta(
                type="message_delta",
                delta=MessageEnd(stop_reason=_stop_reason(end), stop_sequence=_stop_sequence(end)),
                usage=_usage(end),
            ),
            MessageStop(type="message_stop"),
        ]

    def whole(self, output: ChoiceOutput) -> AssistantAnswer:
        """See `SoleWriter.whole`."""
        parts = _parts(output.text, output.parts)
        blocks = blocks_of(parts, shows_thinking=self._shows_thinking)
        return self._message(blocks, _usage(output.end), output.end)

    def _message(
        self, content: list[AnswerBlock], usage: MessageUsage, end: Finished | None = None
    ) -> AssistantAnswer:
        return AssistantAnswer(
            id=self._id,
            type="message",
            role="assistant",
            model=self._model,
            content=content,
            stop_reason=None if end is None else _stop_reason(end),
            stop_sequence=None if end is None else _stop_sequence(end),
            usage=usage,
        )


def _parts(text: str, parts: Sequence[OutputPart]) -> Sequence[OutputPart]:
    """What is new, divided; all of it is content where the engine does not divide it."""
    return parts or ([ContentPart(text)] if text else [])


def _stop_reason(end: Finished) -> StopReason:
    if end.finish_reason is FinishReason.LENGTH:
        return "max_tokens"
    if end.num_calls:
        return "tool_use"
    return "end_turn" if end.stop_string is None else "stop_sequence"


def _stop_sequence(end: Finished) -> str | None:
    return end.stop_string if _stop_reason(end) == "stop_sequence" else None


def _usage(end: Finished) -> MessageUsage:
    usage = MessageUsage(
        input_tokens=end.num_prompt_tokens - end.num_cached_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=end.num_cached_tokens,
        output_tokens=end.num_completion_tokens,
    )
    if end.num_reasoning_tokens:
        usage.output_tokens_details = OutputTokensDetails(thinking_tokens=end.num_reasoning_tokens)
    return usage
