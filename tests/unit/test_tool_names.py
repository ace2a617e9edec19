"""Names of tools are read back in every format, whatever of its marks they hold."""

import pytest

from coordinator.core.output_parts import ArgumentsPart, CallBegins, OutputPart
from coordinator.core.tools import ToolCall
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats import FORMATS
from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.reader import OutputReader
from coordinator.dialogue.written_calls import written_calls

NAMES = ("f", "f:0", "f:1:2", "a.b", "a/b", "functions.f", "_", "-", ".", ":")
PLAIN = [one for one in FORMATS if one.framing is None]


@pytest.mark.parametrize("form", PLAIN, ids=lambda form: form.label)
@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_tool_may_hold_the_marks_of_a_format(form: CallFormat, name: str) -> None:
    call = ToolCall(call_id="abcdefghi", name=name, arguments='{"a": 1}')
    text = written_calls([call], form, {})
    reader = OutputReader(
        Dialect(calls=form),
        tools=dict.fromkeys(NAMES, ()),
        starts_in_reasoning=False,
        new_id=lambda: "id",
    )
    parts: list[OutputPart] = []
    for char in text:
        parts += reader.push(char)
    parts += reader.flush()
    assert [one.name for one in parts if isinstance(one, CallBegins)] == [name]
    arguments = "".join(one.text for one in parts if isinstance(one, ArgumentsPart))
    assert arguments == '{"a": 1}'
