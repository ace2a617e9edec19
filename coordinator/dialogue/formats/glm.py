"""Keys and values between tags, on lines of their own or not: GLM from 4.5 on, Hunyuan, others."""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

GLM_LINES = CallFormat(
    label="glm_lines",
    signs=("<tool_call>", "<arg_key>", "\n<arg_value>"),
    opening="<tool_call>",
    begin="<tool_call>",
    name_end="\n",
    next="</tool_call>\n<tool_call>",
    end="</tool_call>",
    arguments=Parameters(
        begin="<arg_key>",
        name_end="</arg_key>\n<arg_value>",
        end="</arg_value>\n",
        text_name_end="</arg_key>\n<arg_value>",
        text_end="</arg_value>\n",
    ),
)

GLM_DENSE = CallFormat(
    label="glm_dense",
    signs=("<tool_call>", "<arg_key>"),
    opening="<tool_call>",
    begin="<tool_call>",
    name_end="",
    next="</tool_call><tool_call>",
    end="</tool_call>",
    arguments=Parameters(
        begin="<arg_key>",
        name_end="</arg_key><arg_value>",
        end="</arg_value>",
        text_name_end="</arg_key><arg_value>",
        text_end="</arg_value>",
    ),
)

HUNYUAN = CallFormat(
    label="hunyuan",
    signs=("HYTK = ':opensource'", "<tool_sep{}>"),
    opening="<tool_calls:opensource>",
    begin="<tool_calls:opensource>\n<tool_call:opensource>",
    name_end="<tool_sep:opensource>\n",
    next="</tool_call:opensource>\n<tool_call:opensource>",
    end="</tool_call:opensource>\n</tool_calls:opensource>",
    arguments=Parameters(
        begin="<arg_key:opensource>",
        name_end="</arg_key:opensource>\n<arg_value:opensource>",
        end="</arg_value:opensource>\n",
        text_name_end="</arg_key:opensource>\n<arg_value:opensource>",
        text_end="</arg_value:opensource>\n",
    ),
)
