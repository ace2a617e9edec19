"""ByteDance's Seed-OSS: a tag for each argument."""

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

SEED_OSS = CallFormat(
    label="seed_oss",
    signs=("<seed:tool_call>", "<function=", "<parameter="),
    opening="<seed:tool_call>",
    begin="<seed:tool_call>\n<function=",
    name_end=">\n",
    next="</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=",
    end="</function>\n</seed:tool_call>",
    arguments=Parameters(
        begin="<parameter=",
        name_end=">",
        end="</parameter>\n",
        text_name_end=">",
        text_end="</parameter>\n",
    ),
)
