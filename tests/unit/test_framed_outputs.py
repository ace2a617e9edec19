"""Outputs of models that mark each section: gpt-oss (Harmony) and Kimi K3.

The outputs are written by hand: those of Harmony after OpenAI's guide to it, those of Kimi K3 after
its chat template. Special tokens come one by one, as a model writes them.
"""

import json
import re
from itertools import pairwise

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
from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.reader import OutputReader

HARMONY = "<|start|><|channel|>analysis<|message|> functions."
KIMI_K3 = "<|end_of_msg|> open_tag('tools') open_tag('think')"
OF_HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"]
OF_KIMI_K3 = ["<|open|>", "<|sep|>", "<|close|>"]
BOUND = {
    HARMONY: Dialect.of(HARMONY).bound(OF_HARMONY),
    KIMI_K3: Dialect.of(KIMI_K3).bound(OF_KIMI_K3),
}
SPECIAL = re.compile("(" + "|".join(map(re.escape, OF_HARMONY + OF_KIMI_K3)) + ")")

THOUGHT = ReasoningPart("They ask for the weather.")
CALL = (
    CallBegins(0, "new", "get_weather"),
    ArgumentsPart(0, '{"city": "Oslo"}'),
    CallEnds(0),
)
ANALYSIS = "<|channel|>analysis<|message|>They ask for the weather.<|end|><|start|>assistant"
TO_FUNCTION = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)
PREAMBLE = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
THINK = "<|open|>think<|sep|>They ask for the weather.<|close|>think<|sep|>"
RESPONSE = "<|open|>response<|sep|>I look it up.<|close|>response<|sep|>"
TOOLS = (
    '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
    '<|open|>json type="object"<|sep|>{"city": "Oslo"}<|close|>json<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>"
)
MESSAGE_ENDS = "<|close|>message<|sep|>"

OUTPUTS = [
    (HARMONY, ANALYSIS + "<|channel|>final<|message|>Sunny.", (THOUGHT, ContentPart("Sunny."))),
    (HARMONY, "<|channel|>final<|message|>Sunny.", (ContentPart("Sunny."),)),
    (HARMONY, ANALYSIS + TO_FUNCTION, (THOUGHT, *CALL)),
    (HARMONY, TO_FUNCTION, CALL),
    (HARMONY, ANALYSIS + PREAMBLE + TO_FUNCTION, (THOUGHT, ContentPart("I look it up."), *CALL)),
    (
        HARMONY,
        "<|channel|>analysis<|message|>They ask for the wea",
        (ReasoningPart("They ask for the wea"),),
    ),
    (KIMI_K3, THINK + RESPONSE + MESSAGE_ENDS, (THOUGHT, ContentPart("I look it up."))),
    (
        KIMI_K3,
        THINK + RESPONSE + TOOLS + MESSAGE_ENDS,
        (THOUGHT, ContentPart("I look it up."), *CALL),
    ),
    (KIMI_K3, THINK + TOOLS + MESSAGE_ENDS, (THOUGHT, *CALL)),
]
USE = ToolUse(
    tools=(Tool(name="get_weather", parameters='{"properties": {"city": {"type": "string"}}}'),)
)


def pieces(text: str) -> list[tuple[str, bool]]:
    """An output as it comes: special tokens, and texts between them."""
    return [(piece, bool(SPECIAL.fullmatch(piece))) for piece in SPECIAL.split(text) if piece]


def read(
    template: str, text: str, cut: int, *, starts_in_content: bool = False
) -> list[OutputPart]:
    reader = OutputReader(
        BOUND[template],
        tools={"get_weather": frozenset()},
        starts_in_reasoning=False,
        starts_in_content=starts_in_content,
        new_id=lambda: "new",
    )
    parts: list[OutputPart] = []
    for piece, is_special in pieces(text):
        places = [0, len(piece)] if is_special else [*range(0, len(piece), cut), len(piece)]
        for start, end in pairwise(places):
            parts += reader.push(piece[start:end], is_control=is_special)
    return [*parts, *reader.flush()]


@pytest.mark.parametrize(("template", "text", "parts"), OUTPUTS)
@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_sections_are_told_apart(
    template: str, text: str, parts: tuple[OutputPart, ...], cut: int
) -> None:
    assert joined_parts(read(template, text, cut)) == parts


@pytest.mark.parametrize(
    ("template", "text"),
    [(HARMONY, "nny."), (KIMI_K3, "nny.<|close|>response<|sep|><|close|>message<|sep|>")],
)
def test_content_that_the_prompt_has_begun_is_gone_on_with(template: str, text: str) -> None:
    parts = joined_parts(read(template, text, 1, starts_in_content=True))
    assert parts == (ContentPart("nny."),)


def test_text_that_spells_the_marks_is_content() -> None:
    reader = OutputReader(
        BOUND[HARMONY],
        tools={"get_weather": frozenset()},
        starts_in_reasoning=False,
        new_id=lambda: "new",
    )
    quoted = "It writes <|end|><|start|>assistant" + TO_FUNCTION
    parts = []
    for piece, is_special in pieces("<|channel|>final<|message|>"):
        parts += reader.push(piece, is_control=is_special)
    parts += reader.push(quoted)
    assert joined_parts([*parts, *reader.flush()]) == (ContentPart(quoted),)


@pytest.mark.parametrize("template", [HARMONY, KIMI_K3])
def test_an_output_is_always_held_to_its_sections(template: str) -> None:
    ids = {name: index for index, name in enumerate(OF_HARMONY + OF_KIMI_K3, start=100)}
    content = Grammar(kind=GrammarKind.JSON_OBJECT)
    for use in (None, USE, ToolUse(tools=USE.tools, mode=ToolMode.REQUIRED)):
        for wanted in (None, content):
            made = output_grammar(BOUND[template], ids, use=use, content=wanted)
            assert made is not None
            assert made.kind is GrammarKind.OUTPUT
            lark = json.loads(made.text)["lark"]
            assert "\udc00" not in lark, "a special token is an id"
