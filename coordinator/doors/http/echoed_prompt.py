"""A prompt as `echo` returns it: its text, and where in it each token begins."""

import codecs
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from coordinator.core.request_spec import Prompt, TextPrompt
from coordinator.core.turn import Turn
from coordinator.doors.http.answer import SpellToken
from coordinator.doors.http.given_text import GivenText


class EchoedPrompt(NamedTuple):
    """The prompt of one or more choices."""

    text: str
    """As the client sent it; of token ids, what they spell, special tokens by their names."""
    token_ids: Sequence[int]
    starts: Sequence[int]
    """Characters before each token, in whatever form of its characters the text has it. One that
    goes on with a character stands where that begins. One that is not in the text, such as a begin
    token that the tokenizer put there, stands where the last one that is there ends. Empty where
    they are not wanted."""

    def text_of(self, start: int, end: int) -> str:
        """The text that comes with the tokens `[start, end)`; of all together, the whole text."""
        first = self.starts[start] if start else 0
        last = self.starts[end] if end < len(self.token_ids) else len(self.text)
        return self.text[first:last]


async def echoed_prompt(
    prompt: Prompt, token_ids: Sequence[int], spell: SpellToken, *, with_starts: bool
) -> EchoedPrompt:
    """Finds the tokens of a prompt in its text; lets others have the loop now and then.

    Args:
        prompt: As it came.
        token_ids: What the engine made of it.
        spell: The bytes that a token stands for.
        with_starts: Whether the places of the tokens are wanted; without them a text that the
            client sent is not looked through.
    """
    if isinstance(prompt, TextPrompt) and not with_starts:
        return EchoedPrompt(prompt.text, token_ids, ())
    text = GivenText(prompt.text) if isinstance(prompt, TextPrompt) else _SpelledText()
    turn = Turn()
    starts = array("Q")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token_id in token_ids:
        await turn.give_way()
        spelling = spell(token_id)
        part = decoder.decode(spelling)
        own = spelling.decode(errors="ignore")
        if len(own) < len(part) and own.encode() == spelling:  # others left a character cut off
            text.add(part.removesuffix(own))
            part = own
        starts.append(text.add(part))
    text.add(decoder.decode(b"", final=True))
    return EchoedPrompt(text.text, token_ids, starts)


class _SpelledText:
    """The text that tokens spell."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._num_chars = 0

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, part: str) -> int:
        """Adds what the next token spells; returns the characters before it."""
        start = self._num_chars
        self._parts.append(part)
        self._num_chars += len(part)
        return start
