"""What chat templates write of a turn is found in them, allowed by the grammar, and read.

A turn is rendered by the template, and what stands behind the beginning of an answer is taken for
the output of a model. Special tokens are tokens, as the model has them.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
    joined_parts,
)
from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import Tool, ToolCall, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.reader import OutputReader
from coordinator.text.chat_template import ChatTemplate
from stagecoach.contract.errors import InvalidArgumentError
from tests.json_outputs import EOS, SPELLED, accepts_tokens, output_maker

TEMPLATES = Path(__file__).parents[1] / "recorded_calls" / "templates"
WEATHER = Tool(
    name="get_weather",
    description="Weather.",
    parameters='{"type": "object", "properties": {"city": {"type": "string"},'
    ' "days": {"type": "integer"}}, "required": ["city"]}',
)
TIME = Tool(name="time", description="Time.", parameters='{"type": "object"}')
CITY = 'a <b> & \n"c" >>> d'
CALL = ToolCall(
    call_id="abcdefgh10",
    name="get_weather",
    arguments='{"city": "a <b> & \\n\\"c\\" >>> d", "days": 3}',
)
OTHER = ToolCall(call_id="abcdefgh20", name="time", arguments="{}")
USE = ToolUse(tools=(WEATHER, TIME))


class Case(NamedTuple):
    """A template, and what is special in it."""

    template: str
    special: tuple[str, ...]
    begins: str
    """What an answer stands behind."""
    ends: str
    """What ends it."""
    shows: frozenset[str]
    """What of thinking and content beside calls the template shows, and whether several calls."""


CASES = [
    Case(
        "MiniMax-M3",
        ("]<]minimax[>[", "<mm:think>", "</mm:think>", "[e~["),
        "]~b]ai\n",
        "[e~[",
        frozenset({"thinking", "content", "several"}),
    ),
    Case(
        "GigaChat3-10B-A1.8B",
        ("<|role_sep|>", "<|message_sep|>"),
        "assistant<|role_sep|>\n",
        "<|message_sep|>\n\nfunction result",
        frozenset({"content"}),
    ),
    Case(
        "meetkai-functionary-medium-v3.2",
        ("<|eot_id|>",),
        "assistant<|end_header_id|>\n\n>>>",
        "<|eot_id|>",
        frozenset({"content", "several"}),
    ),
    Case(
        "openbmb-MiniCPM5-1B",
        ("<think>", "</think>", "<|im_end|>"),
        "<|im_start|>assistant\n",
        "<|im_end|>",
        frozenset({"thinking", "content", "several"}),
    ),
    Case(
        "muse-glimmer",
        ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
        "<|eot|><|start|>assistant",
        "<|eot|>",
        frozenset({"thinking", "several"}),
    ),
    Case(
        "upstage-Solar-Open-100B",
        (
            *("<|begin|>", "<|end|>", "<|think|>", "<|content|>", "<|tool_calls|>", "<|calls|>"),
            *("<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>"),
            "<|tool_call:end|>",
        ),
        "<|begin|>assistant",
        "<|calls|>",
        frozenset({"thinking", "several"}),
    ),
]
BY_NAME = {case.template: case for case in CASES}


def source(case: Case) -> str:
    return (TEMPLATES / f"{case.template}.jinja").read_text()


def bound(case: Case) -> Dialect:
    return Dialect.of(source(case)).bound(case.special)


def grammar_of(case: Case, use: ToolUse | None, content: Grammar | None = None) -> str:
    ids = {token: EOS + 1 + index for index, token in enumerate(case.special)}
    made = output_grammar(bound(case), ids, use=use, content=content)
    assert made is not None
    return made.text


def pieces(case: Case, text: str) -> list[str]:
    either = re.compile("(" + "|".join(map(re.escape, case.special)) + ")")
    return [piece for piece in either.split(text) if piece]


def allows(case: Case, grammar: str, text: str) -> bool:
    token_ids: list[int] = []
    for piece in pieces(case, text):
        if piece in case.special:
            token_ids.append(EOS + 1 + case.special.index(piece))
        else:
            token_ids += [SPELLED.index(bytes([byte])) for byte in piece.encode()]
    return accepts_tokens(output_maker(case.special)(), grammar, token_ids, GrammarKind.OUTPUT)


def read(case: Case, text: str, *, has_tools: bool = True) -> tuple[OutputPart, ...]:
    reader = OutputReader(
        bound(case),
        tools={"get_weather": {"city"}, "time": ()} if has_tools else None,
        starts_in_reasoning=False,
        new_id=lambda: "new",
    )
    parts: list[OutputPart] = []
    for piece in pieces(case, text):
        if piece in case.special:
            parts += reader.push(piece, is_control=True)
        else:
            for char in piece:
                parts += reader.push(char)
    return joined_parts([*parts, *reader.flush()])


def turn(case: Case, message: ChatMessage) -> str:
    """What a template makes of an answer."""
    template = ChatTemplate(source(case), {"bos_token": "<s>", "eos_token": "</s>"})
    results = [
        ChatMessage(role="tool", content="1", tool_call_id=call.call_id)
        for call in message.tool_calls
    ]
    question = ChatMessage(role="user", content="Hi.")
    text = template.render([question, message, *results], tools=[WEATHER, TIME])
    text = text[text.index(case.begins, text.index("Hi.")) + len(case.begins) :]
    return text[: text.index(case.ends)]


def call_parts(case: Case, *calls: ToolCall) -> list[OutputPart]:
    writes_ids = case.template == "upstage-Solar-Open-100B"
    parts: list[OutputPart] = []
    for index, call in enumerate(calls):
        parts += [
            CallBegins(index, call.call_id if writes_ids else "new", call.name),
            ArgumentsPart(index, call.arguments),
            CallEnds(index),
        ]
    return parts


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.template)
def test_a_turn_with_calls_is_allowed_and_read_as_it_was(case: Case) -> None:
    calls = (CALL, OTHER) if "several" in case.shows else (CALL,)
    message = ChatMessage(
        role="assistant",
        content="Let me look." if "content" in case.shows else "",
        reasoning="Which city?" if "thinking" in case.shows else None,
        tool_calls=calls,
    )
    text = turn(case, message)
    expected: list[OutputPart] = []
    if "thinking" in case.shows:
        expected.append(ReasoningPart("Which city?"))
    if "content" in case.shows:
        expected.append(ContentPart("Let me look."))
    assert list(read(case, text)) == [*expected, *call_parts(case, *calls)]
    assert allows(case, grammar_of(case, USE), text)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.template)
@pytest.mark.parametrize("use", [None, USE, ToolUse(tools=USE.tools, mode=ToolMode.REQUIRED)])
def test_an_answer_without_calls_is_allowed_where_none_is_forced(
    case: Case, use: ToolUse | None
) -> None:
    case = case._replace(ends=case.ends if case.template == "muse-glimmer" else ENDS[case.template])
    text = turn(case, ChatMessage(role="assistant", content="It is >>> 1.2345678901234567."))
    parts = read(case, text, has_tools=use is not None)
    assert parts == (ContentPart("It is >>> 1.2345678901234567."),)
    if use is not None:
        is_free = use.mode is ToolMode.AUTO
        assert allows(case, grammar_of(case, use), text) is is_free
        ended = f"{text}{case.ends}"
        if case.template in MAY_END and is_free:
            assert allows(case, grammar_of(case, use), ended)
            assert read(case, ended) == parts


ENDS = {
    "MiniMax-M3": "[e~[",
    "GigaChat3-10B-A1.8B": "<|message_sep|>",
    "meetkai-functionary-medium-v3.2": "<|eot_id|>",
    "openbmb-MiniCPM5-1B": "<|im_end|>",
    "upstage-Solar-Open-100B": "<|begin|>",
}
MAY_END = ("GigaChat3-10B-A1.8B",)
"""The mark behind their content may or may not be an end token."""


def test_a_tool_that_is_called_as_the_model_calls_its_own_text_is_refused() -> None:
    for template, name in (("meetkai-functionary-medium-v3.2", "all"), ("muse-glimmer", "user")):
        tools = (WEATHER, Tool(name=name))
        with pytest.raises(InvalidArgumentError) as caught:
            grammar_of(BY_NAME[template], ToolUse(tools=tools))
        assert caught.value.details["field"] == "prompt.chat.tools[1].name"


def test_content_may_quote_a_mark_that_no_name_follows() -> None:
    case = BY_NAME["meetkai-functionary-medium-v3.2"]
    text = "all\nIn Python:\n>>> time()\n>>>>>>time\n{}"
    assert allows(case, grammar_of(case, USE), text)
    assert read(case, text) == (
        ContentPart("In Python:\n>>> time()\n>>>"),
        *call_parts(case, OTHER),
    )


def test_a_string_is_in_a_block_only_where_its_characters_want_one() -> None:
    case = BY_NAME["openbmb-MiniCPM5-1B"]
    begin = '<function name="get_weather"><param name="city">'
    grammar = grammar_of(case, USE)
    assert allows(case, grammar, f"{begin}Oslo</param></function>")
    assert allows(case, grammar, f"{begin}<![CDATA[<b>]]></param></function>")
    assert not allows(case, grammar, f"{begin}<b></param></function>")
    assert turn(case, ChatMessage(role="assistant", tool_calls=(CALL,))).count("<![CDATA[") == 1


@pytest.mark.parametrize("use", [None, USE])
def test_a_section_of_content_may_keep_to_a_schema(use: ToolUse | None) -> None:
    wanted = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"const": 7}')
    case = BY_NAME["upstage-Solar-Open-100B"]
    grammar = grammar_of(case, use, wanted)
    assert allows(case, grammar, "<|think|>8?<|end|><|begin|>assistant<|content|>7<|end|>")
    assert not allows(case, grammar, "<|content|>8<|end|>")
    assert not allows(case, grammar, "7<|end|>")
