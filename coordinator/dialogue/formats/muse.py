"""Muse Glimmer: a message to each tool, with a tag for each argument."""

from coordinator.dialogue.formats.call_format import NAME, CallFormat, Parameters
from coordinator.dialogue.formats.framing import MUSE as FRAMING

_END = "</atem:invoke>\n</atem:function_calls>"

MUSE = CallFormat(
    label="muse",
    signs=("<atem:function_calls>", " to=self<|message|>"),
    opening=" to=",
    begin=" to=",
    name_end=f'<|message|><atem:function_calls>\n<atem:invoke name="{NAME}">\n',
    next=f"{_END}<|eom|><|start|>assistant to=",
    end=_END,
    arguments=Parameters(
        begin='<atem:parameter name="',
        name_end='">',
        end="</atem:parameter>\n",
        text_name_end='">',
        text_end="</atem:parameter>\n",
    ),
    is_known_by_name=True,
    framing=FRAMING,
)
