"""gpt-oss: a message of the channel `commentary` to a function.

The end of a call is an end token of the model, and so no part of the format.
"""

from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.formats.framing import HARMONY as FRAMING

HARMONY = CallFormat(
    label="harmony",
    signs=("<|channel|>analysis<|message|>", "functions."),
    opening="<|channel|>commentary to=functions.",
    begin="<|channel|>commentary to=functions.",
    name_end=" <|constrain|>json<|message|>",
    end="",
    framing=FRAMING,
)
