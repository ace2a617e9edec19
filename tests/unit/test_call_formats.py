"""The format of calls is found from the chat template, and reads what the template writes."""

import json

import pytest

from coordinator.core.output_parts import ArgumentsPart, CallBegins, CallEnds, joined_parts
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats import FORMATS, GENERIC, format_of
from coordinator.dialogue.reader import OutputReader
from tests.recorded_calls import ARGUMENTS, TOOLS, RecordedCalls, recorded_calls

RECORDED = recorded_calls()


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: one.template)
def test_what_a_template_writes_is_found_and_read(recorded: RecordedCalls) -> None:
    dialect = Dialect.of(recorded.source)
    assert (dialect.calls.label, dialect.thinking) == (recorded.format, recorded.thinking)
    reader = OutputReader(dialect, tools=TOOLS, starts_in_reasoning=False, new_id=lambda: "new")
    parts = joined_parts([*reader.push(recorded.output), *reader.flush()])
    num_calls = recorded.num_calls
    assert reader.num_calls == num_calls
    names = [part.name for part in parts if isinstance(part, CallBegins)]
    assert names == ["get_weather", "other_fn"][:num_calls]
    arguments = [json.loads(part.text) for part in parts if isinstance(part, ArgumentsPart)]
    assert arguments == list(ARGUMENTS[:num_calls])
    assert [part for part in parts if isinstance(part, CallEnds)] == [
        CallEnds(index) for index in range(num_calls)
    ]


def test_most_formats_were_recorded() -> None:
    unseen = {one.label for one in FORMATS} - {one.format for one in RECORDED}
    assert unseen == {
        "gemma_4",
        "granite_3",
        "harmony",
        "kimi_k3",
        "lfm2",
        "lfm2_5",
        "lfm2_5_instruct",
        "llama_python",
        "minicpm_5",
        "minimax_m3",
        "phi_4",
        "seed_oss",
    }


@pytest.mark.parametrize(
    ("marks", "label"),
    [
        ("<|start_of_role|> respond only with <|tool_call|> followed by a JSON list", "granite_3"),
        ("<|tool|>[]<|/tool|><|tool_call|><|/tool_call|>", "phi_4"),
        ("List of tools: <|tool_list_start|>[", "lfm2"),
        ("'<|tool_call_start|>[' + calls + ']<|tool_call_end|>'", "lfm2_5"),
        ('keep_past_thinking "List of tools: ["', "lfm2_5_instruct"),
        ("'<|tool_call>call:' + name + '{' '}<tool_call|>'", "gemma_4"),
        ("<seed:tool_call>\n<function=a>\n<parameter=b>", "seed_oss"),
        ("'<|channel|>analysis<|message|>' 'assistant to=functions.' + name", "harmony"),
        ("{{ open_tag('tools') }}{{ '<|end_of_msg|>' }}", "kimi_k3"),
        ("Environment: ipython. Use the format [func_name1(params)], func_name2", "llama_python"),
    ],
)
def test_a_format_is_found_by_its_marks(marks: str, label: str) -> None:
    found = format_of(marks)
    assert found is not None
    assert found.label == label


@pytest.mark.parametrize("source", ["", "<|im_start|>{{ message.content }}<|im_end|>"])
def test_a_template_that_knows_no_tools_has_the_generic_format(source: str) -> None:
    dialect = Dialect.of(source)
    assert (dialect.calls, dialect.knows_tools, dialect.thinking) == (GENERIC, False, None)
