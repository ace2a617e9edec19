"""However an output is cut into pieces, it is read alike; and it is read as it was written."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
    joined_parts,
)
from coordinator.core.tools import ToolCall
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats import FORMATS, GENERIC
from coordinator.dialogue.formats.call_format import CallFormat, JsonArguments
from coordinator.dialogue.reader import OutputReader
from coordinator.dialogue.thinking import Thinking
from coordinator.dialogue.written_calls import written_calls
from tests.written_outputs import written_output

TOOLS = {"get": frozenset({"text"}), "other": frozenset[str]()}
THINKING = Thinking("<think>", "</think>")

# What quotes marks of every format, but no whole one that ends a value written as it is.
TEXTS = st.text(alphabet='ab<>/"\\{}[]|,: \n=é🙂', max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=32) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries({}, optional={"text": TEXTS, "count": VALUES, "more": VALUES})
CALLS = st.lists(
    st.builds(
        ToolCall,
        call_id=st.just("abcdefgh1"),
        name=st.sampled_from(sorted(TOOLS)),
        arguments=ARGUMENTS.map(lambda value: json.dumps(value, ensure_ascii=False)),
    ),
    min_size=1,
    max_size=3,
)


def read(
    form: CallFormat, text: str, cuts: list[int], *, starts_in_reasoning: bool = False
) -> tuple[OutputPart, ...]:
    reader = OutputReader(
        Dialect(calls=form, thinking=THINKING),
        tools=TOOLS,
        starts_in_reasoning=starts_in_reasoning,
        new_id=lambda: "new",
    )
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts: list[OutputPart] = []
    for start, end in pairwise(places):
        parts += reader.push(text[start:end])
    return joined_parts([*parts, *reader.flush()])


def read_arguments(parts: tuple[OutputPart, ...]) -> list[Any]:
    """The arguments of each call; a call of none has an empty object all the same."""
    return [json.loads(part.text) for part in parts if isinstance(part, ArgumentsPart)]


@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda one: one.label)
@settings(max_examples=30)
@given(
    content=TEXTS.filter(lambda text: text.strip() and "<think" not in text),
    thought=TEXTS.filter(str.strip),
    calls=CALLS,
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_any_cut_gives_what_was_written(
    form: CallFormat, content: str, thought: str, calls: list[ToolCall], cuts: list[int]
) -> None:
    calls = calls[: None if form.next else 1]
    before = "" if form.is_whole_output else content
    thinks = f"<think>\n{thought}\n</think>" + ("" if form.framing else "\n\n")
    text = written_output(
        form, thought=thinks, content=before, calls=written_calls(calls, form, TOOLS)
    )
    parts = read(form, text, cuts)
    assert parts == read(form, text, [])
    thoughts = [part.text for part in parts if isinstance(part, ReasoningPart)]
    assert thoughts == [thought.strip()]
    shown = "".join(part.text for part in parts if isinstance(part, ContentPart))
    assert shown == (before.rstrip() if form.framing else before.strip())
    names = [part.name for part in parts if isinstance(part, CallBegins)]
    assert names == [call.name for call in calls]
    assert read_arguments(parts) == [json.loads(call.arguments) for call in calls]
    assert sum(isinstance(part, CallEnds) for part in parts) == len(calls)


@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda one: one.label)
@settings(max_examples=20)
@given(calls=CALLS, cut=st.integers(0, 2000))
def test_a_call_that_is_cut_has_no_end(form: CallFormat, calls: list[ToolCall], cut: int) -> None:
    text = written_calls(calls[:1], form, TOOLS)
    whole = read(form, text, [])
    part = read(form, text[: cut % len(text)], [])
    if not any(isinstance(one, CallEnds) for one in part):
        written = "".join(one.text for one in part if isinstance(one, ArgumentsPart))
        all_written = "".join(one.text for one in whole if isinstance(one, ArgumentsPart))
        assert all_written.startswith(written)
    else:
        assert read_arguments(part) == read_arguments(whole)


@given(thought=TEXTS.filter(str.strip), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_a_prompt_that_opens_thinking_is_gone_on_with(thought: str, cuts: list[int]) -> None:
    text = f"{thought}</think>Done."
    parts = read(GENERIC, text, cuts, starts_in_reasoning=True)
    assert parts == (ReasoningPart(thought.strip()), ContentPart("Done."))


@given(text=st.text(alphabet="ab<tool_call>\n ", max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_text_without_an_opening_is_content_to_the_letter(text: str, cuts: list[int]) -> None:
    if "<tool_call>" not in text:
        parts = read(GENERIC, text, cuts)
        assert "".join(one.text for one in parts if isinstance(one, ContentPart)) == text


def test_a_special_token_is_told_from_text_that_spells_it() -> None:
    (form,) = (one for one in FORMATS if one.label == "mistral_names")
    assert isinstance(form.arguments, JsonArguments)
    dialect = Dialect(calls=form).bound(["[TOOL_CALLS]", "[ARGS]", "</s>"])
    reader = OutputReader(
        dialect, tools={"get": ()}, starts_in_reasoning=False, new_id=lambda: "new"
    )
    quoted = "It writes [TOOL_CALLS]get[ARGS]{} then."
    parts = reader.push(quoted) + reader.push("</s>", is_control=True)
    parts += reader.push("[TOOL_CALLS]", is_control=True) + reader.push("get")
    parts += reader.push("[ARGS]", is_control=True) + reader.push("{}")
    assert joined_parts(parts) == (
        ContentPart(quoted),
        CallBegins(0, "new", "get"),
        ArgumentsPart(0, "{}"),
        CallEnds(0),
    )
