"""Calls as Python writes them: LFM2, whose values are JSON."""

from dataclasses import replace

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

LFM2 = CallFormat(
    label="lfm2",
    signs=("<|tool_list_start|>",),
    opening="<|tool_call_start|>",
    begin="<|tool_call_start|>[",
    name_end="(",
    next="), ",
    end=")]<|tool_call_end|>",
    arguments=Parameters(begin="", name_end="=", end="", text_name_end=None, separator=", "),
)

LFM2_5 = replace(LFM2, label="lfm2_5", signs=("<|tool_call_start|>",))
