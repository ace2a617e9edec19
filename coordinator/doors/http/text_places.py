"""Where in the text of a choice each of its tokens begins."""

from collections.abc import Iterable
from typing import NamedTuple

from coordinator.core.events import TokenLogprobs, TokensEvent
from coordinator.doors.http.answer import SpellToken


class PlacedToken(NamedTuple):
    """A token and its place."""

    token_id: int
    logprobs: TokenLogprobs
    start: int
    """Characters of the text before it. One that spells nothing stands where the next begins, one
    that goes on with a character where that begins, one that was cut off at the end of the text."""
    end: int
    """Characters of the text up to its last complete one."""


class TextPlaces:
    """The tokens of one choice that wait for their text.

    Text that may become a stop string is held back, and may never come. A token is placed when
    its text has come, or the text has ended, so that no place is beyond the text.

    Args:
        spell: The bytes that a token stands for.
    """

    def __init__(self, spell: SpellToken) -> None:
        self._spell = spell
        self._waiting: list[PlacedToken] = []
        self.num_chars = 0
        """Characters of all text so far."""
        self._end = 0

    def push(self, event: TokensEvent) -> list[PlacedToken]:
        """Adds tokens and the text that came with them; returns those that are placed now."""
        self.num_chars += len(event.text)
        self._waiting += self._placed(event)
        num_placed = 0
        while num_placed < len(self._waiting) and self._waiting[num_placed].end <= self.num_chars:
            num_placed += 1
        placed, self._waiting = self._waiting[:num_placed], self._waiting[num_placed:]
        return placed

    def finish(self, text: str) -> list[PlacedToken]:
        """Adds the last text; returns the tokens that are left, none beyond the text."""
        self.num_chars += len(text)
        placed, self._waiting = self._waiting, []
        return [token._replace(start=min(token.start, self.num_chars)) for token in placed]

    def _placed(self, event: TokensEvent) -> Iterable[PlacedToken]:
        for token_id, logprobs, end in zip(
            event.token_ids, event.logprobs, event.text_ends, strict=True
        ):
            yield PlacedToken(token_id, logprobs, self._start(token_id, end), end)
            self._end = end

    def _start(self, token_id: int, end: int) -> int:
        """A token's own text ends what came with it; the rest is what others left unfinished."""
        try:
            num_own = len(self._spell(token_id).decode())
        except UnicodeDecodeError:
            return self._end
        return end - num_own if num_own <= end - self._end else self._end
