"""How a model marks what it thinks before it answers."""

from typing import NamedTuple


class Thinking(NamedTuple):
    """The marks of one way to think."""

    begin: str
    end: str


_KNOWN = (
    Thinking("<think>", "</think>"),
    Thinking("<think:opensource>", "</think:opensource>"),
    Thinking("<mm:think>", "</mm:think>"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel>thought\n", "<channel|>"),
    Thinking("<thinking>", "</thinking>"),
    Thinking("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
    Thinking("Here is my thought process:", "Here is my response:"),
)


def thinking_of(template: str) -> Thinking | None:
    """The marks that a chat template speaks of; None when it knows none.

    Args:
        template: Its source.
    """
    source = template.replace("\\n", "\n")
    for one in _KNOWN:
        if one.end in source:
            return one
    return None
