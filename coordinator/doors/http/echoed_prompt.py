"""A prompt as `echo` returns it: its text, and where in it each token begins."""

import codecs
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.core.request_spec import Prompt, TextPrompt
from coordinator.core.turn import Turn
from coordinator.doors.http.answer import SpellToken

_MAX_SKIPPED = 256
"""Characters that a tokenizer may have left out or rewritten before a token that is found again."""


class EchoedPrompt(NamedTuple):
    """The prompt of one or more choices."""

    text: str
    """As the client sent it; of token ids, what they spell, special tokens by their names."""
    token_ids: Sequence[int]
    starts: Sequence[int]
    """Characters before each token. One that goes on with a character stands where that begins. One
    that is not in the text, such as a begin token that the tokenizer put there, stands where the
    next begins; so does one that the tokenizer had rewritten."""

    def text_of(self, start: int, end: int) -> str:
        """The text that comes with the tokens `[start, end)`; of all together, the whole text."""
        first = self.starts[start] if start else 0
        last = self.starts[end] if end < len(self.token_ids) else len(self.text)
        return self.text[first:last]


async def echoed_prompt(
    prompt: Prompt, token_ids: Sequence[int], spell: SpellToken
) -> EchoedPrompt:
    """Finds the tokens of a prompt in its text; lets others have the loop now and then.

    Args:
        prompt: As it came.
        token_ids: What the engine made of it.
        spell: The bytes that a token stands for.
    """
    text = _GivenText(prompt.text) if isinstance(prompt, TextPrompt) else _SpelledText()
    turn = Turn()
    starts = array("Q")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token_id in token_ids:
        await turn.give_way()
        spelling = spell(token_id)
        before = text.num_chars
        text.add(decoder.decode(spelling))
        try:
            own_start = text.num_chars - len(spelling.decode())
        except UnicodeDecodeError:
            own_start = before
        starts.append(max(before, own_start))
    text.add(decoder.decode(b"", final=True))
    return EchoedPrompt(text.text, token_ids, starts)


class _SpelledText:
    """The text that tokens spell."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.num_chars = 0

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, part: str) -> None:
        """Adds what the next token spells."""
        self._parts.append(part)
        self.num_chars += len(part)


class _GivenText:
    """A text that a tokenizer made tokens of, and the place in it that they have reached."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_chars = 0

    def add(self, part: str) -> None:
        """Goes behind what the next token spells, or stays where that is not to be found.

        Tokenizers put spaces before a text, and some rewrite characters.
        """
        if not part:
            return
        for wanted in (part, part.lstrip(" ")):
            if wanted and self.text.startswith(wanted, self.num_chars):
                self.num_chars += len(wanted)
                return
        end = self.num_chars + _MAX_SKIPPED + len(part)
        place = self.text.find(part, self.num_chars, end)
        if place >= 0:
            self.num_chars = place + len(part)
