"""A text that a tokenizer made tokens of, followed token by token.

Tokenizers put spaces before a text, leave some out, and write characters in another form: composed,
taken apart, in small letters. So a place in the text is found by what stands there, and not by the
lengths of tokens.
"""

import unicodedata
from functools import lru_cache

_MAX_SKIPPED = 16
"""Characters that a tokenizer may have left out before tokens that are found again."""
_MAX_PENDING = 64
"""Characters of tokens that are kept while they are not found."""
_MIN_FOUND = 4
"""Characters that must be found together farther on: fewer are found by chance."""


class GivenText:
    """The text, and the place in it that the tokens have reached.

    Args:
        text: As the client sent it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._place = 0
        self._pending = ""
        """What tokens spelled that were not found."""

    def add(self, part: str) -> int:
        """Goes behind what the next token spells, or stays where that is not to be found.

        Returns:
            Characters before the token.
        """
        start = self._place
        if not part:
            return start
        for wanted in (part, part.lstrip(" "), self._pending + part):
            end = self._end_at(start, wanted)
            if end is not None:
                self._go_to(end)
                return start
        return self._skip_to(part)

    def _skip_to(self, part: str) -> int:
        """Looks for a token behind spaces, or with those before it behind other characters."""
        start = self._place
        while start < len(self.text) and self.text[start].isspace():
            start += 1
        bare = part.lstrip(" ")
        end = self._end_at(start, bare)
        if end is not None:
            start = max(self._place, start - len(part) + len(bare))
            self._go_to(end)
            return start
        self._pending = (self._pending + part)[-_MAX_PENDING:]
        wanted = self._pending[-max(_MIN_FOUND, len(part)) :]
        if len(wanted) >= _MIN_FOUND:
            last = self._place + _MAX_SKIPPED + 2 * len(self._pending)
            found = self.text.find(wanted, self._place, last)
            if found >= 0:
                self._go_to(found + len(wanted))
                return self._place - len(part)
        return self._place

    def _go_to(self, place: int) -> None:
        self._place, self._pending = place, ""

    def _end_at(self, start: int, wanted: str) -> int | None:
        """The end of what stands at a place, be it in another form; None if it does not."""
        if not wanted:
            return None
        if self.text.startswith(wanted, start):
            return start + len(wanted)
        plain = _plain(wanted)
        num_left = len(plain)
        for end in range(start, len(self.text)):
            num_left -= len(_plain_char(self.text[end]))
            if num_left <= 0:
                is_found = num_left == 0 and _plain(self.text[start : end + 1]) == plain
                return end + 1 if is_found else None
        return None


def _plain(text: str) -> str:
    """What all forms of a text have in common."""
    return unicodedata.normalize("NFKD", "".join(map(_plain_char, text)))


@lru_cache(maxsize=4096)
def _plain_char(char: str) -> str:
    """A character taken apart, in small letters; any space is the same."""
    if char.isspace():
        return " "
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
