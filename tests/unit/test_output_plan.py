"""What a worker plans of an output is what is planned at once, and equal requests share it."""

import json

import pytest

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import ChatMessage, ChatPrompt, RequestSpec
from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.output_plan import OutputPlan, WantedOutput, plan_output
from coordinator.text import conversations, text_job
from coordinator.text.conversations import Conversations
from coordinator.text.tokenizer import Tokenizer, load_tokenizer
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.model_files import open_model

SCHEMA = {"properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/c"}}, "$defs": {"c": {}}}
TOOLS = (
    Tool(name="f", description="Does.", parameters=json.dumps(SCHEMA), is_strict=True),
    Tool(name="g"),
)
USES = [
    None,
    ToolUse(tools=TOOLS),
    ToolUse(
        tools=TOOLS,
        mode=ToolMode.REQUIRED,
        callable_names=frozenset({"g"}),
        allows_several=False,
    ),
]
CONTENTS = [None, Grammar(kind=GrammarKind.JSON_OBJECT), Grammar(kind=GrammarKind.REGEX, text="a")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = load_tokenizer(open_model("demo"))
    assert found is not None
    return found


def wanted(use: ToolUse | None, content: Grammar | None = None) -> WantedOutput:
    return WantedOutput(
        tools=use,
        content=content,
        is_thinking=False,
        has_thought=True,
        is_answering=False,
        max_thinking_tokens=5,
    )


@pytest.mark.parametrize("use", USES, ids=["none", "auto", "named"])
@pytest.mark.parametrize("content", CONTENTS, ids=["any", "object", "regex"])
def test_a_worker_plans_alike(
    tokenizer: Tokenizer, use: ToolUse | None, content: Grammar | None
) -> None:
    handle = text_job.prepare(tokenizer.to_state())
    answer = handle(text_job.plan_call(wanted(use, content)))
    at_once = plan_output(tokenizer.dialect, tokenizer.added_token_ids, wanted(use, content))
    assert text_job.read_plan(answer) == at_once


def test_a_worker_names_what_it_refuses(tokenizer: Tokenizer) -> None:
    handle = text_job.prepare(tokenizer.to_state())
    wrong = ToolUse(tools=(Tool(name="f", parameters='{"type": "array"}'),))
    with pytest.raises(InvalidArgumentError) as caught:
        text_job.read_plan(handle(text_job.plan_call(wanted(wrong))))
    assert caught.value.field == "prompt.chat.tools[0].parameters.type"


class _Worker:
    """Counts what it is asked to plan."""

    def __init__(self) -> None:
        self.asked: list[WantedOutput] = []

    async def plan_output(self, wanted: WantedOutput) -> OutputPlan:
        self.asked.append(wanted)
        return OutputPlan(grammar=None, text_parameters={})


def spec_of(use: ToolUse) -> RequestSpec:
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="a"),))
    return RequestSpec(prompt=prompt, divides_output=True, tools=use)


async def test_long_tools_are_planned_by_a_worker_and_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_PLANS", 2)
    worker = _Worker()
    made = Conversations(tokenizer, workers=worker)
    long = [
        ToolUse(tools=(Tool(name=name, description="x" * conversations.MAX_INLINE_CHARS + "x"),))
        for name in "abc"
    ]
    for use in (long[0], long[0], long[1], long[0], long[2], long[0], long[1]):
        await made.plan(spec_of(use), [1])
    assert [one.tools for one in worker.asked] == [long[0], long[1], long[2], long[1]]
    short = await made.plan(spec_of(ToolUse(tools=TOOLS)), [1])
    assert short is not None
    assert short.plan.grammar is not None
    assert len(worker.asked) == 4
