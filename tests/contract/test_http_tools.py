"""Tools and thinking over the HTTP door, with the official `openai` package and real pipelines."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam

from tests.byte_models import CHAT_TEMPLATE
from tests.contract.byte_doors import MODEL, THINKING_TEMPLATE, openai_client

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 3},
    },
    "required": ["city", "days"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the weather?"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with openai_client(tmp_path_factory.mktemp("model")) as found:
        yield found


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("model")
    with openai_client(folder, chat_template=THINKING_TEMPLATE) as found:
        yield found


def ask(client: OpenAI, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 700, "seed": 3}
    return client.chat.completions.create(**{**defaults, **settings})


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_conforms_to_its_schema(client: OpenAI, seed: int) -> None:
    done = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed)
    [choice] = done.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    if call.function.name == "weather":
        jsonschema_rs.validator_for(WEATHER).validate(json.loads(call.function.arguments))
    else:
        assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "now"}}],
            },
        },
    ],
    ids=["named", "allowed"],
)
def test_only_what_is_named_is_called(client: OpenAI, choice: Any) -> None:
    settings = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    [call] = ask(client, **settings).choices[0].message.tool_calls
    assert call.function.name == "now"


def test_a_stream_brings_what_a_whole_answer_has(client: OpenAI) -> None:
    settings: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "n": 2}
    whole = ask(client, **settings)
    names: dict[tuple[int, int], str] = {}
    arguments: dict[tuple[int, int], str] = {}
    reasons: dict[int, str] = {}
    for chunk in ask(client, **settings, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
            for call in choice.delta.tool_calls or ():
                place = choice.index, call.index
                if call.id is not None:
                    assert place not in names
                    names[place] = call.function.name
                    arguments[place] = ""
                else:
                    assert call.function.name is None
                arguments[place] += call.function.arguments
    for choice in whole.choices:
        assert reasons[choice.index] == choice.finish_reason
        for index, call in enumerate(choice.message.tool_calls or ()):
            assert names[choice.index, index] == call.function.name
            assert arguments[choice.index, index] == call.function.arguments


def test_a_call_that_is_cut_says_so_and_is_left_out(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    [choice] = ask(client, tools=TOOLS, tool_choice=named, max_tokens=60).choices
    assert choice.finish_reason == "length"
    assert not choice.message.tool_calls
    assert choice.message.content == ""


def test_a_conversation_goes_on_behind_a_call(client: OpenAI) -> None:
    settings = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    message: ChatCompletionMessage = ask(client, **settings).choices[0].message
    assert message.tool_calls is not None
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny."}
    done = ask(client, messages=[*CHAT, message, answer], tools=TOOLS, max_tokens=5)
    assert done.choices[0].finish_reason in ("stop", "length")
    without = ask(client, messages=CHAT, tools=TOOLS, max_tokens=5)
    assert done.usage.prompt_tokens > without.usage.prompt_tokens + len("Sunny.")


def test_tools_that_may_not_be_called_are_not_shown(client: OpenAI) -> None:
    plain = ask(client, max_tokens=5)
    none = ask(client, max_tokens=5, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {
                "tools": [
                    TOOLS[0],
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"properties": {"x": {"pattern": "(?<=a)b"}}},
                        },
                    },
                ]
            },
            "tools[1].function.parameters",
        ),
    ],
    ids=["no tools", "one name twice", "a name with a space", "a hosted tool", "a strict schema"],
)
def test_what_is_refused_is_named(client: OpenAI, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **settings)
    assert caught.value.param == param
    assert param in caught.value.message


def test_thinking_is_told_from_content_and_counted(thinker: OpenAI) -> None:
    done = ask(thinker, max_tokens=40, logit_bias={"30": -100})
    [choice] = done.choices
    assert choice.message.content == ""
    assert choice.message.reasoning_content
    assert choice.message.reasoning == choice.message.reasoning_content
    assert done.usage.completion_tokens_details.reasoning_tokens == 40
    streamed = ""
    for chunk in ask(thinker, max_tokens=40, logit_bias={"30": -100}, stream=True):
        for one in chunk.choices:
            assert not one.delta.content
            streamed += getattr(one.delta, "reasoning_content", None) or ""
    assert streamed == choice.message.reasoning_content


def test_thinking_can_be_switched_off(thinker: OpenAI) -> None:
    for settings in (
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"enable_thinking": False}},
    ):
        done = ask(thinker, max_tokens=10, **settings)
        assert done.choices[0].message.content
        assert done.usage.completion_tokens_details is None


def test_a_form_holds_after_thinking(thinker: OpenAI) -> None:
    schema = {"name": "x", "schema": {"const": 7}}
    form = {"type": "json_schema", "json_schema": schema}
    done = ask(thinker, response_format=form, reasoning_effort="none", max_tokens=20)
    assert json.loads(done.choices[0].message.content) == 7
    settings = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    [choice] = ask(thinker, **settings, reasoning_effort="none").choices
    assert choice.finish_reason == "tool_calls"


def test_what_a_template_makes_nothing_of_is_named(client: OpenAI, thinker: OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 1}
    settings["reasoning_effort"] = "low"
    settings["extra_body"] = {"chat_template_kwargs": {"enable_thinking": True, "mood": "good"}}
    named = {}
    for name, one in {"client": client, "thinker": thinker}.items():
        answer = one.chat.completions.with_raw_response.create(**settings)
        named[name] = set(answer.headers["x-stagecoach-ignored"].split(", "))
    assert named["thinker"] == {"chat_template_kwargs.mood"}
    assert named["client"] == named["thinker"] | {
        "reasoning_effort",
        "chat_template_kwargs.enable_thinking",
    }


def test_the_template_of_the_other_tests_knows_neither() -> None:
    assert "tools" not in CHAT_TEMPLATE
    assert "think" not in CHAT_TEMPLATE
