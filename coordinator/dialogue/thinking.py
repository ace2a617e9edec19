"""How a model marks what it thinks before it answers."""

from typing import NamedTuple


class Thinking(NamedTuple):
    """The marks of one way to think."""

    begin: str
    end: str
    may_end_at_once: bool = False
    """Whether an output may begin with `end`, where nothing is thought."""


_BY_END = (
    Thinking("<think>", "</think>"),
    Thinking("<mm:think>", "</mm:think>", may_end_at_once=True),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel>thought\n", "<channel|>"),
    Thinking("<thinking>", "</thinking>"),
    Thinking("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
    Thinking("Here is my thought process:", "Here is my response:"),
)
_KNOWN = {
    **{one.end: one for one in _BY_END},
    "<|channel|>analysis<|message|>": Thinking("<|channel|>analysis<|message|>", "<|end|>"),
    "assistant<|think|>": Thinking("<|think|>", "<|end|>"),
    "assistant to=self<|message|>": Thinking(" to=self<|message|>", "<|eom|>"),
    "open_tag('think')": Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    "HYTK = ':opensource'": Thinking("<think:opensource>", "</think:opensource>"),
}
"""By a text that is in the chat template of a model that thinks so."""


def thinking_of(template: str) -> Thinking | None:
    """The marks that a chat template speaks of; None when it knows none.

    Args:
        template: Its source.
    """
    source = template.replace("\\n", "\n")
    return next((one for sign, one in _KNOWN.items() if sign in source), None)
