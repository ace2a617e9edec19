"""MiniMax: M1 writes JSON on lines of its own, M2 a tag for each argument."""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

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
