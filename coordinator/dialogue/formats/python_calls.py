"""Calls as Python writes them, with values in JSON: LFM2, Llama 3.2 and Llama 4.

Of Llama, those templates that ask for it; specified by Meta's prompt guide for Llama 3.2.
"""

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

LLAMA_PYTHON = CallFormat(
    label="llama_python",
    signs=("ipython", "[func_name1("),
    opening="[",
    begin="[",
    name_end="(",
    next="), ",
    end=")]",
    arguments=LFM2.arguments,
    is_known_by_name=True,
    is_whole_output=True,
)

LFM2_5 = replace(LFM2, label="lfm2_5", signs=("<|tool_call_start|>",))

LFM2_5_INSTRUCT = replace(
    LFM2, label="lfm2_5_instruct", signs=("List of tools: [", "keep_past_thinking")
)
"""Its template shows tools, and no calls of a history."""
