"""The text of one request that is divided into content, thinking and calls of tools."""

from collections.abc import Iterable, Sequence

from coordinator.core.output_parts import CallBegins, ContentPart, OutputPart, ReasoningPart
from coordinator.dialogue.reader import OutputReader
from coordinator.text.stop_strings import StopStrings, TextDelta
from coordinator.text.tokenizer import Tokenizer


class DividedText:
    """Detokenizes one request, divides it, and ends its content at stop strings.

    Stop strings are looked for in the content alone: they cut no call and no thinking. Not
    thread-safe.

    Args:
        tokenizer: The model's.
        reader: Divides the text.
        stop: Stop strings, none of them empty.
        min_tokens: Tokens at the beginning whose text is not looked through for them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reader: OutputReader,
        stop: Iterable[str],
        *,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._reader = reader
        self._stop_strings = StopStrings(stop)
        self._num_unwatched = min_tokens
        self._stopped = False
        self.num_chars = 0
        """Characters that the tokens have spelled so far, as `OutputText.num_chars`."""
        self.num_reasoning_tokens = 0
        """Tokens so far that are thinking."""

    @property
    def num_calls(self) -> int:
        """Calls of tools that are whole so far."""
        return self._reader.num_calls

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the content; None while none did."""
        return self._stop_strings.found

    def push(self, token_id: int) -> TextDelta:
        """Adds a token; not to be called again once it returned `stopped`."""
        assert not self._stopped, "a stopped text takes no more tokens"
        was_reasoning = self._reader.is_reasoning
        hidden = self._detokenizer.hidden_text(token_id)
        if hidden:
            parts = self._reader.push(hidden, is_control=True)
        else:
            text = self._detokenizer.push([token_id])
            self.num_chars += len(text)
            parts = self._reader.push(text)
        self.num_reasoning_tokens += was_reasoning or self._reader.is_reasoning
        is_watched = not self._num_unwatched
        self._num_unwatched -= not is_watched
        delta = self._delta(parts, is_watched=is_watched)
        if hidden and is_watched and not delta.stopped and not self._reader.is_reasoning:
            ended = self._stop_strings.push_hidden(hidden)
            if ended.text or ended.stopped:
                delta = _joined(delta, ended)
        self._stopped = delta.stopped
        return delta

    def flush(self) -> TextDelta:
        """Returns what was held back, when no more tokens follow; empty after a stop."""
        if self._stopped:
            return TextDelta("", stopped=True)
        parts = self._reader.push(self._detokenizer.flush()) + self._reader.flush()
        delta = self._delta(parts, is_watched=not self._num_unwatched)
        if not delta.stopped:
            delta = _joined(delta, TextDelta(self._stop_strings.flush(), stopped=False))
        self._stopped = True
        return delta

    def _delta(self, parts: Sequence[OutputPart], *, is_watched: bool) -> TextDelta:
        """What is shown of some parts: content up to a stop string, and all others before it."""
        shown: list[OutputPart] = []
        for part in parts:
            if isinstance(part, ContentPart) and is_watched:
                delta = self._stop_strings.push(part.text)
                if delta.text:
                    shown.append(ContentPart(delta.text))
                if delta.stopped:
                    return _delta(shown, stopped=True)
                continue
            if isinstance(part, CallBegins | ReasoningPart):
                held = self._stop_strings.flush()
                if held:
                    shown.append(ContentPart(held))
            shown.append(part)
        return _delta(shown, stopped=False)


def _delta(parts: Sequence[OutputPart], *, stopped: bool) -> TextDelta:
    text = "".join(part.text for part in parts if isinstance(part, ContentPart))
    return TextDelta(text, stopped, tuple(parts))


def _joined(first: TextDelta, second: TextDelta) -> TextDelta:
    parts = (*first.parts, ContentPart(second.text)) if second.text else first.parts
    return TextDelta(first.text + second.text, second.stopped, parts)
