"""A name and JSON between marks: Kimi K2 and K3, Solar Open, Functionary, GigaChat."""

from coordinator.dialogue.formats import framing
from coordinator.dialogue.formats.call_format import CALL_ID, CALL_INDEX, CallFormat, IdForm

KIMI_K2 = CallFormat(
    label="kimi_k2",
    signs=("<|tool_calls_section_begin|>",),
    opening="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|><|tool_call_begin|>functions.",
    name_end=f":{CALL_INDEX}<|tool_call_argument_begin|>",
    next="<|tool_call_end|><|tool_call_begin|>functions.",
    end="<|tool_call_end|><|tool_calls_section_end|>",
)

KIMI_K3 = CallFormat(
    label="kimi_k3",
    signs=("<|end_of_msg|>", "open_tag('tools')"),
    opening="<|open|>tools<|sep|>",
    begin='<|open|>tools<|sep|><|open|>call tool="',
    name_end=f'" index="{CALL_INDEX}"<|sep|><|open|>json type="object"<|sep|>',
    next='<|close|>json<|sep|><|close|>call<|sep|><|open|>call tool="',
    end="<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
    framing=framing.KIMI_K3,
)

SOLAR_OPEN = CallFormat(
    label="solar_open",
    signs=("<|tool_call:begin|>",),
    opening="<|tool_calls|>",
    begin=f"<|tool_calls|><|tool_call:begin|>{CALL_ID}<|tool_call:name|>",
    name_end="<|tool_call:args|>",
    next=f"<|tool_call:end|><|tool_call:begin|>{CALL_ID}<|tool_call:name|>",
    end="<|tool_call:end|>",
    id_form=IdForm.TEN,
    framing=framing.SOLAR_OPEN,
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

FUNCTIONARY_32 = CallFormat(
    label="functionary_32",
    signs=(">>>${recipient}", ">>>all"),
    opening="",
    begin="",
    name_end="\n",
    next=">>>",
    end="",
    is_known_by_name=True,
    framing=framing.FUNCTIONARY_32,
)

GIGACHAT_3 = CallFormat(
    label="gigachat_3",
    signs=("<|message_sep|>", "function call"),
    opening="<|message_sep|>",
    begin='<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "',
    name_end='", "arguments": ',
    end="}",
    content_end="<|message_sep|>",
)

GIGACHAT_31 = CallFormat(
    label="gigachat_31",
    signs=("<|function_call|>",),
    opening="<|function_call|>",
    begin='<|function_call|>{"name": "',
    name_end='", "arguments": ',
    end="}",
    content_end="<|message_sep|>",
)
