"""MiniMax: M1 writes JSON on lines of its own, M2 and M3 a tag for each argument.

M3 writes elements inside of elements for objects and lists; they are JSON here.
"""

from coordinator.dialogue.formats.call_format import NAME, CallFormat, Parameters

MINIMAX_M1 = CallFormat(
    label="minimax_m1",
    signs=("<tool_calls>", "<beginning_of_sentence>"),
    opening="<tool_calls>",
    begin='<tool_calls>\n{"name": "',
    name_end='", "arguments": ',
    next='}\n{"name": "',
    end="}\n</tool_calls>",
)

MINIMAX_M2 = CallFormat(
    label="minimax_m2",
    signs=("<minimax:tool_call>",),
    opening="<minimax:tool_call>",
    begin='<minimax:tool_call>\n<invoke name="',
    name_end='">\n',
    next='</invoke>\n<invoke name="',
    end="</invoke>\n</minimax:tool_call>",
    arguments=Parameters(
        begin='<parameter name="',
        name_end='">',
        end="</parameter>\n",
        text_name_end='">',
        text_end="</parameter>\n",
    ),
)

_TAG = "]<]minimax[>["

MINIMAX_M3 = CallFormat(
    label="minimax_m3",
    signs=(_TAG, "<tool_call>", '<invoke name="'),
    opening=f"{_TAG}<tool_call>",
    begin=f'{_TAG}<tool_call>\n{_TAG}<invoke name="',
    name_end='">',
    next=f'{_TAG}</invoke>\n{_TAG}<invoke name="',
    end=f"{_TAG}</invoke>\n{_TAG}</tool_call>",
    arguments=Parameters(
        begin=f"{_TAG}<",
        name_end=">",
        end=f"{_TAG}</{NAME}>",
        text_name_end=">",
        text_end=f"{_TAG}</{NAME}>",
    ),
)
