"""How one model writes what a conversation consists of."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

from coordinator.dialogue.formats import GENERIC, format_of
from coordinator.dialogue.formats.call_format import CONTROL, CallFormat, Parameters
from coordinator.dialogue.formats.framing import Framing
from coordinator.dialogue.thinking import Thinking, thinking_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The marks of thinking and the format of calls, as they are spelled."""

    thinking: Thinking | None = None
    calls: CallFormat = GENERIC
    knows_tools: bool = False
    """Whether the model's chat template has calls of tools. Otherwise it is told how to call them
    in its system message."""
    controls: frozenset[str] = frozenset()
    """Special tokens in these texts; known once the dialect is bound."""

    @classmethod
    def of(cls, template: str | None) -> Self:
        """The dialect that a chat template speaks.

        Args:
            template: Its source; None for a model without one.
        """
        calls = format_of(template or "")
        return cls(
            thinking=thinking_of(template or ""),
            calls=calls or GENERIC,
            knows_tools=calls is not None,
        )

    def bound(self, special_tokens: Collection[str]) -> Self:
        """The same dialect, with `CONTROL` before each special token in its texts.

        Args:
            special_tokens: Tokens that are no text to the model's tokenizer.
        """
        names = sorted(map(re.escape, special_tokens), key=len, reverse=True)
        special = re.compile("|".join(names) or "(?!)")
        controls: set[str] = set()

        def marked(text: str) -> str:
            controls.update(special.findall(text))
            return special.sub(lambda found: CONTROL + found.group(), text)

        calls, arguments = self.calls, self.calls.arguments
        if isinstance(arguments, Parameters):
            arguments = replace(
                arguments,
                begin=marked(arguments.begin),
                name_end=marked(arguments.name_end),
                end=marked(arguments.end),
                text_name_end=arguments.text_name_end and marked(arguments.text_name_end),
                text_end=marked(arguments.text_end),
                separator=marked(arguments.separator),
                block=(marked(arguments.block[0]), marked(arguments.block[1])),
            )
        calls = replace(
            calls,
            opening=marked(calls.opening),
            begin=marked(calls.begin),
            name_end=marked(calls.name_end),
            end=marked(calls.end),
            next=calls.next and marked(calls.next),
            arguments=arguments,
            content_end=marked(calls.content_end),
            framing=calls.framing and Framing(*map(marked, calls.framing)),
        )
        thinking = self.thinking and self.thinking._replace(
            begin=marked(self.thinking.begin), end=marked(self.thinking.end)
        )
        return replace(self, thinking=thinking, calls=calls, controls=frozenset(controls))
