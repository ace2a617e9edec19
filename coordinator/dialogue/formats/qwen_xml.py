"""Qwen3-Coder and Qwen 3.5, Nemotron 3, Step 3.5: a tag for each argument."""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

QWEN_XML = CallFormat(
    label="qwen_xml",
    signs=("<tool_call>", "<function=", "<parameter="),
    opening="<tool_call>",
    begin="<tool_call>\n<function=",
    name_end=">\n",
    next="</function>\n</tool_call>\n<tool_call>\n<function=",
    end="</function>\n</tool_call>",
    arguments=Parameters(
        begin="<parameter=",
        name_end=">\n",
        end="\n</parameter>\n",
        text_name_end=">\n",
        text_end="\n</parameter>\n",
    ),
)
