"""MiniCPM 5: an element for each argument, with a CDATA section where XML wants one."""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

MINICPM_5 = CallFormat(
    label="minicpm_5",
    signs=('<function name="', '<param name="', "<![CDATA["),
    opening='<function name="',
    begin='<function name="',
    name_end='">',
    next='</function>\n<function name="',
    end="</function>",
    arguments=Parameters(
        begin='<param name="',
        name_end='">',
        end="</param>",
        text_name_end='">',
        text_end="</param>",
        not_plain="<&\n",
        block=("<![CDATA[", "]]>"),
    ),
)
