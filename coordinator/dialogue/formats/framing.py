"""How some models mark what they answer, beside what they think and call."""

from typing import NamedTuple


class Framing(NamedTuple):
    """The marks of one way to answer in sections.

    An output is `(SECTION joint)* SECTION`, where a section is thinking, content or calls.
    """

    begin: str
    """Before content that is the last section."""
    end: str
    """After it; empty where only an end token follows."""
    lead_begin: str
    """Before content that other sections follow."""
    lead_end: str
    """After it. `end` begins with it, or is empty."""
    joint: str
    """Between two sections."""


HARMONY = Framing(
    begin="<|channel|>final<|message|>",
    end="",
    lead_begin="<|channel|>commentary<|message|>",
    lead_end="<|end|>",
    joint="<|start|>assistant",
)
"""The marks of gpt-oss. OpenAI specifies them in its guide to the format Harmony."""

KIMI_K3 = Framing(
    begin="<|open|>response<|sep|>",
    end="<|close|>response<|sep|><|close|>message<|sep|>",
    lead_begin="<|open|>response<|sep|>",
    lead_end="<|close|>response<|sep|>",
    joint="",
)

SOLAR_OPEN = Framing(
    begin="<|content|>",
    end="<|end|>",
    lead_begin="<|content|>",
    lead_end="<|end|>",
    joint="<|begin|>assistant",
)

MUSE = Framing(
    begin=" to=user<|message|>",
    end="",
    lead_begin=" to=user<|message|>",
    lead_end="<|eom|>",
    joint="<|start|>assistant",
)

FUNCTIONARY_32 = Framing(
    begin="all\n",
    end="",
    lead_begin="all\n",
    lead_end=">>>",
    joint="",
)
"""The marks of Functionary 3.2, whose prompts end with the first `>>>`."""
