"""The strings that a model reads as commands, such as `<|im_start|>`, and where they occur.

In a conversation only the template may write them. A client's string that holds one is shielded
while the template renders: the part is a row of digits that nobody can guess, which a template can
trim around, split beside, escape and change to capitals, and is put back afterwards. So the parts
that the client wrote are known in whatever the template makes of them.

A template that deletes something inside a message, or changes its letters, could make a control
token of what was none, such as `<|im_</think>start|>`. A strict shield takes every character away
with which one could begin.
"""

import re
import secrets
from collections.abc import Collection, Iterator, Sequence

_START_CHARS = 4
"""Characters of the beginning of a control token by which places are found where there may be one:
text of nothing but first characters must not be looked at one by one."""


class ControlTokens:
    """Finds control tokens in text.

    Args:
        contents: What they are spelled as.
    """

    def __init__(self, contents: Collection[str]) -> None:
        self._contents = frozenset(contents) - {""}
        self._lengths = sorted({len(content) for content in self._contents}, reverse=True)
        first_chars = "".join(sorted({re.escape(content[0]) for content in self._contents}))
        starts = {re.escape(content[:_START_CHARS]) for content in self._contents}
        self._start = re.compile("|".join(sorted(starts)) or "(?!)")
        # An entity, such as &lt;, becomes another character where a template takes tags away.
        self._first_char_of_any_case = re.compile(
            f"[{first_chars}&]" if first_chars else "(?!)", re.IGNORECASE
        )
        self._beginnings = frozenset(
            content[:length] for content in self._contents for length in range(1, len(content))
        )

    def find_beginnings(self, text: str, kept: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        """Yields start and end of each character with which one could begin, from the left.

        Args:
            text: Text that a client sent.
            kept: What is passed over: strings that a template looks for.
        """
        position = 0
        for match in kept.finditer(text):
            yield from self._beginnings_in(text, position, match.start())
            position = match.end()
        yield from self._beginnings_in(text, position, len(text))

    def found_in(self, text: str) -> list[str]:
        """The control tokens that are in a text, in order."""
        return [text[start:end] for start, end in self.find(text)]

    def _beginnings_in(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        return (match.span() for match in self._first_char_of_any_case.finditer(text, start, end))

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields start and end of each, from the left, of several at one place the longest."""
        end = 0
        while (match := self._start.search(text, end)) is not None:
            start = match.start()
            end = start + 1
            for length in self._lengths:
                if text[start : start + length] in self._contents:
                    end = start + length
                    yield start, end
                    break

    def find_open_end(self, text: str) -> tuple[int, int] | None:
        """Start and end of what could become one with the text that follows, spaces aside."""
        end = len(text.rstrip())
        for length in range(min(end, max(self._lengths, default=0)), 0, -1):
            if text[end - length : end] in self._beginnings:
                return end - length, end
        return None


class ShieldedText:
    """Takes control tokens out of a client's strings, and puts them back into what became of them.

    One object serves one conversation.

    Args:
        control_tokens: What is taken out.
        kept: For a strict shield: what stays as it is, of what is no control token.
    """

    def __init__(
        self, control_tokens: ControlTokens, *, kept: re.Pattern[str] | None = None
    ) -> None:
        self._control_tokens = control_tokens
        self._kept = kept
        self._prefix = str(10**23 + secrets.randbelow(9 * 10**23))
        self._parts: list[str] = []
        self._shield = re.compile(self._prefix + r"(\d{8})")

    def shield(self, text: str) -> str:
        """Returns a client's string without control tokens, or parts that could become one."""
        spans = list(self._control_tokens.find(text))
        open_end = self._control_tokens.find_open_end(text)
        if open_end is not None and (not spans or open_end[0] >= spans[-1][1]):
            spans.append(open_end)
        if self._kept is not None:
            beginnings = self._control_tokens.find_beginnings(text, self._kept)
            spans = _with_others(spans, beginnings)
        pieces = []
        position = 0
        for start, end in spans:
            pieces += [text[position:start], f"{self._prefix}{len(self._parts):08}"]
            self._parts.append(text[start:end])
            position = end
        return "".join([*pieces, text[position:]])

    @property
    def num_parts(self) -> int:
        """How many parts were taken out."""
        return len(self._parts)

    def restore(self, text: str) -> str:
        """Puts back what `shield` took out."""
        if not self._parts:
            return text
        return self._shield.sub(lambda match: self._parts[int(match[1])], text)


def _with_others(
    spans: Sequence[tuple[int, int]], others: Iterator[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Spans in order, and among them those others that are not inside one."""
    merged: list[tuple[int, int]] = []
    for span in sorted([*spans, *others], key=lambda span: (span[0], -span[1])):
        if not merged or span[0] >= merged[-1][1]:
            merged.append(span)
    return merged


def unguessable_tag() -> str:
    """A row of digits that is in no client's text."""
    return str(10**31 + secrets.randbelow(9 * 10**31))
