"""Ends a text that arrives in pieces before the first stop string that it would contain."""

from collections.abc import Iterable
from typing import NamedTuple

from coordinator.core.output_parts import OutputPart


class TextDelta(NamedTuple):
    """What became of new tokens or text."""

    text: str
    """Text to show; may be empty."""
    stopped: bool
    """True when a stop string ended the text."""
    parts: tuple[OutputPart, ...] = ()
    """The same divided, with what is not content; empty for a text that is not divided."""


class StopStrings:
    """Watches the text of one request; the result does not depend on how the text is cut.

    Besides what is shown there is what special tokens spell, which is not. A stop string may
    lie in the shown text alone, or in all that was spelled: `</s>` stops, and so does `a</s>`.

    The text ends at the first position at which a stop string is complete, and before that stop
    string; of several that are complete there, before the one that hides the most.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Starts with no text.

        Args:
            stops: None of them empty.
        """
        stops = tuple(stops)
        self._in_shown = [_Match(stop) for stop in stops]
        self._in_all = [_Match(stop) for stop in stops]
        self._is_shown: list[bool] = []
        """Whether each of the last characters is shown, for as many as the longest stop string has;
        the two ways of matching differ only while one of these is False."""
        self._max_chars = max(map(len, stops), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text; None while none did."""

    def push(self, text: str) -> TextDelta:
        """Adds text to show; holds back its end as long as that may become a stop string.

        Not to be called again once it returned `stopped`.
        """
        return self._push(text, shown=True)

    def push_hidden(self, text: str) -> TextDelta:
        """Adds what a special token spells, which is never shown.

        Not to be called again once it returned `stopped`.
        """
        return self._push(text, shown=False)

    def flush(self) -> str:
        """Returns what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _push(self, text: str, *, shown: bool) -> TextDelta:
        if not self._in_shown:
            return TextDelta(text if shown else "", False)
        for position, char in enumerate(text):
            self._is_shown.append(shown)
            found = [match for match in self._in_all if match.advance(char)]
            num_hidden = max((self._num_shown(len(match.stop)) for match in found), default=0)
            if shown:
                complete = [match for match in self._in_shown if match.advance(char)]
                found += complete
                num_hidden = max(num_hidden, *(len(match.stop) for match in complete), 0)
            if found:
                seen = self._held + text[: position + 1] if shown else self._held
                self._held = ""
                self.found = max((match.stop for match in found), key=len)
                return TextDelta(seen[: len(seen) - num_hidden], True)
        del self._is_shown[: -self._max_chars]
        seen = self._held + text if shown else self._held
        num_shown = len(seen) - self._num_held()
        self._held = seen[num_shown:]
        return TextDelta(seen[:num_shown], False)

    def _num_held(self) -> int:
        """Shown characters at the end that a stop string may still take away."""
        in_all = max(match.num_matched for match in self._in_all)
        return max(self._num_shown(in_all), *(match.num_matched for match in self._in_shown))

    def _num_shown(self, num_chars: int) -> int:
        """How many of the last characters of all are shown."""
        return sum(self._is_shown[len(self._is_shown) - num_chars :])


class _Match:
    """How much of one stop string the text ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        # _borders[n]: the longest proper prefix of stop[:n + 1] that is also its suffix.
        self._borders = [0]
        for char in stop[1:]:
            self._borders.append(self._longest(char, self._borders[-1]))

    def advance(self, char: str) -> bool:
        """Adds a character; True when the stop string is complete."""
        self.num_matched = self._longest(char, self.num_matched)
        return self.num_matched == len(self.stop)

    def _longest(self, char: str, num_matched: int) -> int:
        """Longest prefix of the stop string that ends with `char`, after `num_matched` others."""
        while num_matched and self.stop[num_matched] != char:
            num_matched = self._borders[num_matched - 1]
        return num_matched + (self.stop[num_matched] == char)
