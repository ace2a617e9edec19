"""The text of one request: tokens in, text to show out."""

from collections.abc import Iterable

from coordinator.text.stop_strings import StopStrings, TextDelta
from coordinator.text.tokenizer import Tokenizer


class OutputText:
    """Detokenizes one request and ends its text at stop strings. Not thread-safe."""

    num_calls = 0
    num_reasoning_tokens = 0

    def __init__(
        self, tokenizer: Tokenizer | None, stop: Iterable[str], *, min_tokens: int = 0
    ) -> None:
        """Starts with no text.

        Args:
            tokenizer: None for a model without one, whose text is always empty.
            stop: Stop strings, none of them empty.
            min_tokens: Tokens at the beginning whose text is not looked through for them.
        """
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer()
        self._stop_strings = StopStrings(stop)
        self._num_unwatched = min_tokens
        """Tokens that are still to come before stop strings count."""
        self._stopped = False
        self.num_chars = 0
        """Characters that the tokens have spelled so far, shown or held back; those that an
        unfinished character waits for are not counted."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None while none did."""
        return self._stop_strings.found

    def push(self, token_id: int) -> TextDelta:
        """Adds a token; not to be called again once it returned `stopped`."""
        assert not self._stopped, "a stopped text takes no more tokens"
        if self._detokenizer is None:
            return TextDelta("", False)
        hidden = self._detokenizer.hidden_text(token_id)
        if self._num_unwatched:
            self._num_unwatched -= 1
            text = "" if hidden else self._detokenizer.push([token_id])
            self.num_chars += len(text)
            return TextDelta(text, False)
        if hidden:
            delta = self._stop_strings.push_hidden(hidden)
        else:
            text = self._detokenizer.push([token_id])
            self.num_chars += len(text)
            delta = self._stop_strings.push(text)
        self._stopped = delta.stopped
        return delta

    def flush(self) -> TextDelta:
        """Returns the text that was held back, when no more tokens follow; empty after a stop."""
        if self._detokenizer is None or self._stopped:
            return TextDelta("", False)
        delta = self._stop_strings.push(self._detokenizer.flush())
        self._stopped = True
        return TextDelta(delta.text + self._stop_strings.flush(), delta.stopped)
