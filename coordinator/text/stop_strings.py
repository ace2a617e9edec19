"""Ends a text that arrives in pieces before the first stop string that it would contain."""

from collections.abc import Iterable
from typing import NamedTuple


class TextDelta(NamedTuple):
    """What became of new tokens or text."""

    text: str
    """To show; may be empty."""
    stopped: bool
    """True when a stop string ended the text."""


class StopStrings:
    """Watches the text of one request; the result does not depend on how the text is cut.

    The text ends at the first position at which a stop string is complete, and before that stop
    string; of several that are complete there, before the longest.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Starts with no text.

        Args:
            stops: None of them empty.
        """
        self._matches = [_Match(stop) for stop in stops]
        self._held = ""

    def push(self, text: str) -> TextDelta:
        """Adds text; holds back its end as long as that may become a stop string.

        Not to be called again once it returned `stopped`.
        """
        if not self._matches:
            return TextDelta(text, False)
        for position, char in enumerate(text):
            found = [match.stop for match in self._matches if match.advance(char)]
            if found:
                seen, self._held = self._held + text[: position + 1], ""
                return TextDelta(seen[: -max(map(len, found))], True)
        seen = self._held + text
        num_shown = len(seen) - max(match.num_matched for match in self._matches)
        self._held = seen[num_shown:]
        return TextDelta(seen[:num_shown], False)

    def flush(self) -> str:
        """Returns what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


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
