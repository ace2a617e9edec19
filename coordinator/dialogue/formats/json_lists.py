"""Lists of JSON behind a mark: Granite 3, Phi 4, Command, Apriel, Nemotron Nano and others."""

from coordinator.dialogue.formats.call_format import CALL_INDEX, CallFormat

GRANITE_3 = CallFormat(
    label="granite_3",
    signs=("<|tool_call|>", "<|start_of_role|>"),
    opening="<|tool_call|>",
    begin='<|tool_call|>[{"name": "',
    name_end='", "arguments": ',
    next='}, {"name": "',
    end="}]",
)

PHI_4 = CallFormat(
    label="phi_4",
    signs=("<|tool_call|>", "<|/tool_call|>"),
    opening="<|tool_call|>",
    begin='<|tool_call|>[{"name": "',
    name_end='", "arguments": ',
    next='}, {"name": "',
    end="}]<|/tool_call|>",
)

COMMAND = CallFormat(
    label="command",
    signs=("<|START_ACTION|>", "tool_name"),
    opening="<|START_ACTION|>",
    begin=f'<|START_ACTION|>[\n    {{"tool_call_id": "{CALL_INDEX}", "tool_name": "',
    name_end='", "parameters": ',
    next=f'}},\n    {{"tool_call_id": "{CALL_INDEX}", "tool_name": "',
    end="}\n]<|END_ACTION|>",
)

APRIEL = CallFormat(
    label="apriel",
    signs=("<tool_calls>", "</tool_calls>"),
    opening="<tool_calls>",
    begin='<tool_calls>[{"name": "',
    name_end='", "arguments": ',
    next='}, {"name": "',
    end="}]</tool_calls>",
)

NEMOTRON_NANO = CallFormat(
    label="nemotron_nano",
    signs=("<TOOLCALL>",),
    opening="<TOOLCALL>",
    begin='<TOOLCALL>[{"name": "',
    name_end='", "arguments": ',
    next='}, {"name": "',
    end="}]</TOOLCALL>",
)

APERTUS = CallFormat(
    label="apertus",
    signs=("<|tools_prefix|>",),
    opening="<|tools_prefix|>",
    begin='<|tools_prefix|>[{"',
    name_end='": ',
    next='}, {"',
    end="}]<|tools_suffix|>",
)

COMMAND_R_PLUS = CallFormat(
    label="command_r_plus",
    signs=("<|START_OF_TURN_TOKEN|>", "Action:\n```json\n[", '"tool_name": '),
    opening="Action:\n```json\n[",
    begin='Action:\n```json\n[\n    {\n        "tool_name": "',
    name_end='",\n        "parameters": ',
    next='\n    },\n    {\n        "tool_name": "',
    end="\n    }\n]```",
)

FIREFUNCTION_2 = CallFormat(
    label="firefunction_2",
    signs=(" functools[",),
    opening="functools[",
    begin='functools[{"name": "',
    name_end='", "arguments": ',
    next='}, {"name": "',
    end="}]",
)
