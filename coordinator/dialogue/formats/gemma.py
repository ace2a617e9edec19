"""Gemma 4: a function as JavaScript writes it, with strings between tokens of their own.

Its values inside of values are JSON here, which the model reads as well as its own form.
"""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

GEMMA_4 = CallFormat(
    label="gemma_4",
    signs=("<|tool_call>", "<tool_call|>"),
    opening="<|tool_call>",
    begin="<|tool_call>call:",
    name_end="{",
    next="}<tool_call|><|tool_call>call:",
    end="}<tool_call|>",
    arguments=Parameters(
        begin="",
        name_end=":",
        end="",
        text_name_end=':<|"|>',
        text_end='<|"|>',
        separator=",",
    ),
)
