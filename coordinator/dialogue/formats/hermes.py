"""Hermes, and Qwen 2.5 and 3, Granite 4 and many others: JSON between tags.

Specified by the model card of NousResearch's Hermes 2 Pro, and by the templates themselves.
"""

from coordinator.dialogue.formats.call_format import CallFormat

HERMES = CallFormat(
    label="hermes",
    signs=("<tool_call>", '"name"'),
    opening="<tool_call>",
    begin='<tool_call>\n{"name": "',
    name_end='", "arguments": ',
    next='}\n</tool_call>\n<tool_call>\n{"name": "',
    end="}\n</tool_call>",
)
