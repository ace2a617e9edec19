"""Writes what `/api/chat` and `/api/generate` answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from coordinator.core.events import Finished, TokenLogprobs, TokensEvent
from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    OutputPart,
    ReasoningPart,
)
from coordinator.core.request import FinishReason
from coordinator.doors.http.answer import ChoiceOutput, SpellToken
from coordinator.doors.http.event_stream import StreamForm
from coordinator.doors.http.schema.base import ResponseModel
from coordinator.doors.http.schema.ollama_answer import (
    CalledFunctionAnswer,
    ChatAnswerPart,
    GenerateAnswerPart,
    MessageAnswerPart,
    OllamaAnswer,
    OllamaLogprob,
    OllamaTokenLogprob,
    ToolCallAnswer,
)
from coordinator.doors.http.schema.written_objects import json_text


def _line(event: ResponseModel) -> bytes:
    return json_text(event).encode() + b"\n"


# A blank before a line is no part of its JSON; an empty line would be read as one without any.
_STREAM = StreamForm(content_type=b"application/x-ndjson", write=_line, alive=b" ")


def time_text(unix_s: float) -> str:
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


class _Lines(ABC):
    """A `SoleWriter` of lines.

    Args:
        model: Name of the model.
        spell: Spells tokens.
    """

    form = _STREAM

    def __init__(self, model: str, spell: SpellToken) -> None:
        self._model = model
        self._spell = spell

    @abstractmethod
    def part(self, text: str, parts: Sequence[OutputPart]) -> OllamaAnswer:
        """What is new in the answer.

        Args:
            text: New content.
            parts: All that is new, divided.
        """

    @abstractmethod
    def says_anything(self, part: OllamaAnswer) -> bool:
        """Whether a part is worth a line."""

    def opening(self, _num_prompt_tokens: int) -> Sequence[ResponseModel]:
        """See `SoleWriter.opening`: nothing comes before the first token."""
        return ()

    def tokens(self, event: TokensEvent) -> Sequence[ResponseModel]:
        """See `SoleWriter.tokens`."""
        part = self.part(event.text, event.parts)
        self._add_logprobs(part, event)
        return [part] if event.logprobs or self.says_anything(part) else []

    def ending(self, end: Finished) -> Sequence[ResponseModel]:
        """See `SoleWriter.ending`."""
        rest = self.part(end.text, end.parts)
        said = [rest] if self.says_anything(rest) else []
        return [*said, _ended(self.part("", ()), end)]

    def whole(self, output: ChoiceOutput) -> ResponseModel:
        """See `SoleWriter.whole`."""
        part = self.part(output.text, output.parts)
        if output.tokens is not None:
            self._add_logprobs(part, output.tokens)
        return _ended(part, output.end)

    def loaded(self) -> OllamaAnswer:
        """Says that the model is there, in an answer without a text."""
        part = self.part("", ())
        part.done, part.done_reason = True, "load"
        return part

    def _add_logprobs(self, part: OllamaAnswer, event: TokensEvent) -> None:
        if event.logprobs:
            pairs = zip(event.token_ids, event.logprobs, strict=True)
            part.logprobs = [_logprob(*pair, self._spell) for pair in pairs]


class OllamaChatAnswer(_Lines):
    """Writes messages; a call comes when it is whole."""

    def __init__(self, model: str, spell: SpellToken) -> None:
        super().__init__(model, spell)
        self._calls = _Calls()

    def part(self, text: str, parts: Sequence[OutputPart]) -> ChatAnswerPart:
        """What is new in the answer, or all of it."""
        message = MessageAnswerPart(role="assistant", content=text)
        thinking = _thinking(parts)
        if thinking:
            message.thinking = thinking
        calls = self._calls.push(parts)
        if calls:
            message.tool_calls = calls
        return ChatAnswerPart(model=self._model, created_at=_now(), message=message, done=False)

    def says_anything(self, part: OllamaAnswer) -> bool:
        """Whether a part is worth a line."""
        assert isinstance(part, ChatAnswerPart), "a part of another answer"
        said = part.message
        return bool(said.content or said.thinking or said.tool_calls)


class OllamaGenerateAnswer(_Lines):
    """Writes texts."""

    def part(self, text: str, parts: Sequence[OutputPart]) -> GenerateAnswerPart:
        """What is new in the answer, or all of it."""
        part = GenerateAnswerPart(model=self._model, created_at=_now(), response=text, done=False)
        thinking = _thinking(parts)
        if thinking:
            part.thinking = thinking
        return part

    def says_anything(self, part: OllamaAnswer) -> bool:
        """Whether a part is worth a line."""
        assert isinstance(part, GenerateAnswerPart), "a part of another answer"
        return bool(part.response or part.thinking)


class _Calls:
    """Puts calls together of their parts."""

    def __init__(self) -> None:
        self._begins: CallBegins | None = None
        self._arguments: list[str] = []

    def push(self, parts: Sequence[OutputPart]) -> list[ToolCallAnswer]:
        """Takes what follows; returns the calls that are whole with it."""
        calls = []
        for part in parts:
            match part:
                case CallBegins():
                    self._begins, self._arguments = part, []
                case ArgumentsPart():
                    self._arguments.append(part.text)
                case CallEnds():
                    calls.append(self._call())
        return calls

    def _call(self) -> ToolCallAnswer:
        assert self._begins is not None, "a call ends that never began"
        function = CalledFunctionAnswer(
            index=self._begins.index,
            name=self._begins.name,
            arguments="".join(self._arguments),
        )
        return ToolCallAnswer(id=self._begins.call_id, function=function)


def _logprob(token_id: int, known: TokenLogprobs, spell: SpellToken) -> OllamaLogprob:
    written = OllamaLogprob(**_spelled(token_id, known.logprob, spell))
    if known.top:
        written.top_logprobs = [OllamaTokenLogprob(**_spelled(*top, spell)) for top in known.top]
    return written


def _spelled(token_id: int, logprob: float, spell: SpellToken) -> dict[str, Any]:
    spelling = spell(token_id)
    text = spelling.decode(errors="replace")
    return {"token": text, "logprob": logprob, "bytes": list(spelling)}


def _thinking(parts: Sequence[OutputPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, ReasoningPart))


def _ended(part: OllamaAnswer, end: Finished) -> OllamaAnswer:
    """Says how an answer ended, and how long it took."""
    timings = end.timings
    first_ns = timings.time_to_first_token_ns or timings.total_ns
    part.done = True
    part.done_reason = "length" if end.finish_reason is FinishReason.LENGTH else "stop"
    part.total_duration = timings.total_ns
    part.load_duration = 0
    part.prompt_eval_count = end.num_prompt_tokens
    part.prompt_eval_duration = max(first_ns - timings.queue_ns, 0)
    part.eval_count = end.num_completion_tokens
    part.eval_duration = max(timings.total_ns - first_ns, 0)
    return part


def _now() -> str:
    return time_text(datetime.now(UTC).timestamp())
