"""DeepSeek: V3 and R1 write JSON in a fence, V3.1 JSON alone, later ones a tag for an argument."""

from dataclasses import replace

from coordinator.dialogue.formats.call_format import CallFormat, Parameters

_CALLS, _CALL, _SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_CALL_END, _CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"

DEEPSEEK_V3 = CallFormat(
    label="deepseek_v3",
    signs=("<｜tool▁calls▁begin｜>", "```json"),
    opening=_CALLS,
    begin=f"{_CALLS}{_CALL}function{_SEP}",
    name_end="\n```json\n",
    next=f"\n```{_CALL_END}\n{_CALL}function{_SEP}",
    end=f"\n```{_CALL_END}{_CALLS_END}",
)

DEEPSEEK_V31 = CallFormat(
    label="deepseek_v31",
    signs=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    opening=_CALLS,
    begin=f"{_CALLS}{_CALL}",
    name_end=_SEP,
    next=f"{_CALL_END}{_CALL}",
    end=f"{_CALL_END}{_CALLS_END}",
)

_TAG = "｜DSML｜"

DEEPSEEK_V32 = CallFormat(
    label="deepseek_v32",
    signs=(_TAG, "function_calls>"),
    opening=f"<{_TAG}function_calls>",
    begin=f'<{_TAG}function_calls>\n<{_TAG}invoke name="',
    name_end='">\n',
    next=f'</{_TAG}invoke>\n<{_TAG}invoke name="',
    end=f"</{_TAG}invoke>\n</{_TAG}function_calls>",
    arguments=Parameters(
        begin=f'<{_TAG}parameter name="',
        name_end='" string="false">',
        end=f"</{_TAG}parameter>\n",
        text_name_end='" string="true">',
        text_end=f"</{_TAG}parameter>\n",
    ),
)

DEEPSEEK_V4 = replace(
    DEEPSEEK_V32,
    label="deepseek_v4",
    signs=(_TAG, "tool_calls"),
    opening=f"<{_TAG}tool_calls>",
    begin=f'<{_TAG}tool_calls>\n<{_TAG}invoke name="',
    end=f"</{_TAG}invoke>\n</{_TAG}tool_calls>",
)
