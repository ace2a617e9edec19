"""A name and JSON between marks: Kimi K2, Solar Open, Functionary 3.1, GigaChat 3.1."""

from coordinator.dialogue.formats.call_format import CALL_ID, CALL_INDEX, CallFormat

KIMI_K2 = CallFormat(
    label="kimi_k2",
    signs=("<|tool_calls_section_begin|>",),
    opening="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|><|tool_call_begin|>functions.",
    name_end=f":{CALL_INDEX}<|tool_call_argument_begin|>",
    next="<|tool_call_end|><|tool_call_begin|>functions.",
    end="<|tool_call_end|><|tool_calls_section_end|>",
)

SOLAR_OPEN = CallFormat(
    label="solar_open",
    signs=("<|tool_call:begin|>",),
    opening="<|tool_calls|>",
    begin=f"<|tool_calls|><|tool_call:begin|>{CALL_ID}<|tool_call:name|>",
    name_end="<|tool_call:args|>",
    next=f"<|tool_call:end|><|tool_call:begin|>{CALL_ID}<|tool_call:name|>",
    end="<|tool_call:end|>",
)

FUNCTIONARY_31 = CallFormat(
    label="functionary_31",
    signs=("<function=", "</function>", "<|eom_id|>"),
    opening="<function=",
    begin="<function=",
    name_end=">",
    next="</function><function=",
    end="</function>",
)

GIGACHAT = CallFormat(
    label="gigachat",
    signs=("<|function_call|>",),
    opening="<|function_call|>",
    begin='<|function_call|>{"name": "',
    name_end='", "arguments": ',
    end="}",
)
