"""Requests over HTTP against OpenAI's own types, and what they become for the engine."""

from typing import Any, get_type_hints

import pytest
from openai.types import chat, completion_create_params, shared_params
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel, ValidationError

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.http.request_specs import chat_specs, choice_seed, completion_specs
from coordinator.http.schema.chat import ChatCompletionRequest, ContentPart, Message
from coordinator.http.schema.completion import CompletionRequest
from coordinator.http.schema.response_format import JsonSchema
from coordinator.http.schema.sampling import StreamOptions

MESSAGES = [{"role": "user", "content": "hi"}]


def fields_of(*types: Any) -> set[str]:
    """The keys of OpenAI's dictionaries."""
    return {name for one in types for name in get_type_hints(one)}


CHAT_FIELDS = fields_of(
    chat_create_params.CompletionCreateParamsNonStreaming,
    chat_create_params.CompletionCreateParamsStreaming,
)
TEXT_FIELDS = fields_of(
    completion_create_params.CompletionCreateParamsNonStreaming,
    completion_create_params.CompletionCreateParamsStreaming,
)

TAKEN: dict[str, list[Any]] = {
    "model": ["x"],
    "messages": [MESSAGES],
    "prompt": ["x", ["x", "y"], [1, 2], [[1], [2, 3]]],
    "frequency_penalty": [-2, 0.5, 2],
    "presence_penalty": [-2, 0.5, 2],
    "logit_bias": [{"5": -100, "7": 3.5}],
    "max_completion_tokens": [1],
    "max_tokens": [1],
    "metadata": [{"a": "b"}],
    "n": [1, 128],
    "seed": [0, -5, 2**63],
    "stop": ["x", ["x", "y"], []],
    "stream": [True, False],
    "temperature": [0, 1.5, 2],
    "top_p": [0.1, 1],
    "user": ["me"],
    "safety_identifier": ["me"],
    "prompt_cache_key": ["k"],
    "store": [False],
    "prompt_cache_retention": ["in_memory"],
    "service_tier": ["auto", "default"],
    "modalities": [["text"]],
    "reasoning_effort": ["none"],
    "verbosity": ["medium"],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}},
    ],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
}
"""Values that are honoured, or that ask for nothing."""

REFUSED: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "mp3"}],
    "moderation": [{"model": "omni-moderation-latest"}],
    "prediction": [{"type": "content", "content": "x"}],
    "prompt_cache_options": [{"mode": "explicit"}],
    "prompt_cache_retention": ["24h"],
    "web_search_options": [{"search_context_size": "low"}],
    "store": [True],
    "service_tier": ["flex", "priority"],
    "modalities": [["audio"], ["text", "audio"]],
    "reasoning_effort": ["low", "high"],
    "verbosity": ["low", "high"],
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "functions": [[{"name": "f"}]],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "function_call": [{"name": "f"}],
    "logprobs": ["5"],
    "top_logprobs": [5, 21],
    "stream_options": [{"include_usage": True}],
    "response_format": [{"type": "grammar"}],
    "best_of": [2],
    "echo": [True],
    "suffix": ["x"],
}
"""Values that are refused when nothing else is set, by the name of the field."""


def read(model: type[BaseModel], settings: dict[str, Any]) -> BaseModel:
    required = {"messages": MESSAGES} if model is ChatCompletionRequest else {"prompt": "x"}
    return model.model_validate({**required, **settings})


@pytest.mark.parametrize(
    ("model", "field"),
    [(ChatCompletionRequest, field) for field in sorted(CHAT_FIELDS)]
    + [(CompletionRequest, field) for field in sorted(TEXT_FIELDS)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_field_of_openai_is_taken_or_refused_by_name(
    model: type[BaseModel], field: str
) -> None:
    assert field in TAKEN.keys() | REFUSED.keys()
    for value in TAKEN.get(field, []):
        assert field in read(model, {field: value}).model_fields_set
    for value in REFUSED.get(field, []):
        with pytest.raises(ValidationError) as caught:
            read(model, {field: value})
        [error, *_] = caught.value.errors()
        assert error["loc"][:1] == (field,) or error["msg"].startswith(f"Value error, {field} ")
    if field not in ("messages", "prompt"):
        read(model, {field: None})


def test_every_field_inside_the_fields_of_openai_is_known() -> None:
    text_part = fields_of(chat.ChatCompletionContentPartTextParam)
    assert text_part <= set(ContentPart.model_fields)
    messages = fields_of(
        chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionUserMessageParam,
        chat.ChatCompletionAssistantMessageParam,
    )
    assert messages == set(Message.model_fields)
    assert fields_of(chat.ChatCompletionStreamOptionsParam) == set(StreamOptions.model_fields)
    schema = fields_of(shared_params.response_format_json_schema.JSONSchema)
    assert schema == {field.alias or name for name, field in JsonSchema.model_fields.items()}


def test_what_is_not_set_takes_the_defaults_of_openai() -> None:
    [[spec]] = chat_specs(ChatCompletionRequest.model_validate({"messages": MESSAGES}), "r")
    assert spec.sampling == SamplingParams(temperature=1.0)
    assert spec.max_tokens is None
    assert spec.logprobs is None
    assert spec.request_id == "r-0"
    [[spec]] = completion_specs(CompletionRequest.model_validate({"prompt": "x"}), "r")
    assert spec.max_tokens == 16


def test_every_field_reaches_the_engine() -> None:
    wanted = CompletionRequest.model_validate(
        {
            "prompt": "x",
            "max_tokens": 9,
            "temperature": 0.25,
            "top_p": 0.5,
            "top_k": 7,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "presence_penalty": 0.75,
            "frequency_penalty": -0.75,
            "logit_bias": {"3": 2},
            "seed": 5,
            "stop": "END",
            "stop_token_ids": [8],
            "ignore_eos": True,
            "cache_salt": "salt",
            "logprobs": 4,
            "structured_outputs": {"regex": "a+"},
        }
    )
    [[spec]] = completion_specs(wanted, "r")
    assert spec.prompt == TextPrompt(text="x")
    assert spec.max_tokens == 9
    assert spec.sampling == SamplingParams(
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.75,
        frequency_penalty=-0.75,
        logit_bias={3: 2.0},
        seed=5,
    )
    assert spec.stop == ("END",)
    assert spec.stop_token_ids == (8,)
    assert spec.ignore_eos
    assert spec.cache_salt == "salt"
    assert spec.logprobs == 4
    assert spec.grammar == Grammar(kind=GrammarKind.REGEX, text="a+")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", [TextPrompt(text="x")]),
        (["x", "y"], [TextPrompt(text="x"), TextPrompt(text="y")]),
        ([0, 5], [TokenPrompt(token_ids=(0, 5))]),
        ([[0], [5, 6]], [TokenPrompt(token_ids=(0,)), TokenPrompt(token_ids=(5, 6))]),
    ],
)
def test_every_form_of_prompt_is_read(prompt: Any, expected: list[Any]) -> None:
    specs = completion_specs(CompletionRequest.model_validate({"prompt": prompt, "n": 2}), "r")
    assert [spec.prompt for specs in specs for spec in specs] == [
        one for one in expected for _ in range(2)
    ]
    ids = [spec.request_id for specs in specs for spec in specs]
    assert ids == [f"r-{index}" for index in range(2 * len(expected))]


def test_messages_are_joined_and_developers_are_systems() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    wanted = ChatCompletionRequest.model_validate(
        {"messages": [{"role": "developer", "content": parts}, {"role": "user", "content": ""}]}
    )
    [[spec]] = chat_specs(wanted, "r")
    assert spec.prompt == ChatPrompt(
        messages=(
            ChatMessage(role="system", content="ab"),
            ChatMessage(role="user", content=""),
        )
    )


def test_seeds_of_choices_differ_and_repeat() -> None:
    seeds = [choice_seed(7, index) for index in range(128)]
    assert len(set(seeds)) == 128
    assert seeds == [choice_seed(7, index) for index in range(128)]
    assert seeds[0] == 7
    assert set(seeds).isdisjoint(choice_seed(8, index) for index in range(128))
    assert choice_seed(-1, 0) == 2**64 - 1
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(("seed", "expected"), [(None, None), (-1, None), (-2, 2**64 - 2), (0, 0)])
def test_a_seed_of_minus_one_is_none(seed: int | None, expected: int | None) -> None:
    wanted = CompletionRequest.model_validate({"prompt": "x", "seed": seed})
    [[spec]] = completion_specs(wanted, "r")
    assert spec.sampling.seed == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (False, None), (True, 0)], ids=["unset", "no", "yes"]
)
def test_log_probabilities_are_of_the_chosen_token_alone_unless_more_are_asked_for(
    value: bool | None, expected: int | None
) -> None:
    wanted = ChatCompletionRequest.model_validate({"messages": MESSAGES, "logprobs": value})
    assert chat_specs(wanted, "r")[0][0].logprobs == expected
