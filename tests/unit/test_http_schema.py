"""Requests over HTTP against OpenAI's own types, and what they become for the engine."""

import json
from typing import Any, get_type_hints

import pytest
from jsonschema_rs import Draft202012Validator
from openai.types import chat, completion_create_params, shared_params
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import BaseModel, ValidationError

from coordinator.core.catalog import Catalog
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request_spec import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.doors.http.app import create_app
from coordinator.doors.http.door import Door
from coordinator.doors.http.ignored_fields import MAX_NAMED, ignored_fields
from coordinator.doors.http.request_specs import chat_specs, choice_seed, completion_specs
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest, Message
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.response_format import MAX_CHOICE_TEXTS, JsonSchema
from coordinator.doors.http.schema.sampling import StreamOptions
from coordinator.doors.http.validation import validate
from stagecoach.contract.errors import InvalidArgumentError

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
    "max_completion_tokens": [1, -1, 16.0, 2**40],
    "max_tokens": [1, -1, 16.0, 2**40],
    "metadata": [{"a": "b"}, {"a": {"b": 1}}],
    "n": [1, 128],
    "seed": [0, -5, 2**63, 1.0],
    "stop": ["x", ["x", "y"], [], ""],
    "stream": [True, False],
    "temperature": [0, 1.5, 2],
    "top_p": [0, 0.1, 1],
    "top_logprobs": [0],
    "user": ["me", "x" * 600],
    "safety_identifier": ["me"],
    "prompt_cache_key": ["k", "x" * 65],
    "prompt_cache_options": [{"mode": "explicit"}],
    "prediction": [{"type": "content", "content": "x"}],
    "store": [False, True],
    "prompt_cache_retention": ["in_memory", "24h"],
    "service_tier": ["auto", "default", "flex", "priority"],
    "modalities": [["text"]],
    "reasoning_effort": ["none", "minimal", "high"],
    "verbosity": ["low", "medium", "high"],
    "stream_options": [{"include_usage": True}, {"include_obfuscation": True}, {}],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "functions": [[]],
    "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}],
    "function_call": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}},
        {"type": "json_schema", "json_schema": {"name": "x"}},
    ],
    "best_of": [1],
    "echo": [False, True],
    "suffix": [""],
}
"""Values that are honoured, or that ask for nothing."""

REFUSED: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "mp3"}],
    "moderation": [{"model": "omni-moderation-latest"}],
    "web_search_options": [{"search_context_size": "low"}],
    "modalities": [["audio"], ["text", "audio"]],
    "tools": [[{"type": "custom", "custom": {"name": "f"}}], [{"type": "function"}], {}],
    "functions": [[{"name": "f"}]],
    "tool_choice": ["sometimes", {"type": "custom", "custom": {"name": "f"}}, 1],
    "function_call": [{"name": "f"}],
    "logprobs": ["5"],
    "top_logprobs": [5, 21],
    "response_format": [{"type": "grammar"}],
    "best_of": [2],
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


def test_every_field_inside_the_options_of_openai_is_known() -> None:
    assert fields_of(chat.ChatCompletionStreamOptionsParam) <= set(StreamOptions.model_fields)
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
            "min_tokens": 3,
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
    assert spec.min_tokens == 3
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


@pytest.mark.parametrize("schema", [{}, {"schema": None}])
def test_a_schema_that_is_not_given_is_that_of_any_object(schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", **schema}}
    [[spec]] = completion_specs(
        CompletionRequest.model_validate({"prompt": "x", "response_format": form}), "r"
    )
    assert spec.grammar == Grammar(kind=GrammarKind.JSON_OBJECT)


def chosen(texts: list[str]) -> Grammar | None:
    form = {"structured_outputs": {"choice": texts}}
    [[spec]] = completion_specs(CompletionRequest.model_validate({"prompt": "x", **form}), "r")
    return spec.grammar


def test_one_of_some_texts_is_an_expression_of_them() -> None:
    assert chosen(["yes", "a.b|c"]) == Grammar(kind=GrammarKind.REGEX, text=r"(yes|a\.b\|c)")
    assert chosen([""]) == Grammar(kind=GrammarKind.REGEX, text="()")


def test_texts_to_choose_from_are_some_and_not_too_many() -> None:
    assert chosen(["x"] * MAX_CHOICE_TEXTS) is not None
    for texts in ([], ["x"] * (MAX_CHOICE_TEXTS + 1), [5], "yes"):
        with pytest.raises(ValidationError, match=r"structured_outputs\.choice"):
            read(CompletionRequest, {"structured_outputs": {"choice": texts}})
    with pytest.raises(ValidationError, match="has 2 forms"):
        read(CompletionRequest, {"structured_outputs": {"choice": ["a"], "regex": "a"}})


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_what_asks_for_nothing_is_taken_whoever_has_the_field(
    kind: type[ChatCompletionRequest] | type[CompletionRequest],
) -> None:
    off = ("raw", "watermark", "return_full_text", "return_hidden_states", "safe_prompt")
    settings = {
        **dict.fromkeys(off, False),
        **dict.fromkeys(("n_probs", "min_keep"), 0),
        "do_sample": True,
        "structured_outputs": {
            "json": None,
            "json_object": False,
            "regex": "a",
            "choice": None,
            "disable_any_whitespace": False,
            "disable_additional_properties": False,
            "structural_tag": None,
        },
    }
    asked = {"messages": MESSAGES} if kind is ChatCompletionRequest else {"prompt": "x"}
    wanted = read(kind, {**asked, **settings})
    assert isinstance(wanted, ChatCompletionRequest | CompletionRequest)
    inside = {"structured_outputs.structural_tag"}
    assert set(ignored_fields(wanted).values()) == inside
    for field in off:
        with pytest.raises(ValidationError, match=rf"{field}\n.*is not supported"):
            read(kind, {**asked, field: True})
    with pytest.raises(ValidationError, match=r"do_sample\n.*is supported only as true"):
        read(kind, {**asked, "do_sample": False})


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_what_no_text_depends_on_is_advice_of_both_kinds_of_completion(
    kind: type[ChatCompletionRequest] | type[CompletionRequest],
) -> None:
    advice = {
        "store": True,
        "service_tier": "auto",
        "reasoning": {"effort": "low"},
        "verbosity": "low",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "timeout": 600,
        "mm_processor_kwargs": {"num_crops": 4},
    }
    asked = {"messages": MESSAGES} if kind is ChatCompletionRequest else {"prompt": "x"}
    wanted = read(kind, {**asked, **advice})
    assert isinstance(wanted, ChatCompletionRequest | CompletionRequest)
    assert set(ignored_fields(wanted).values()) == set(advice)


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


def test_what_all_prompts_share_is_made_once() -> None:
    """A schema of 50 kB was written and checked for each of 128 prompts, on the event loop."""
    wanted = {"prompt": ["x"] * 3, "structured_outputs": {"json": {"type": "object"}}}
    specs = completion_specs(CompletionRequest.model_validate(wanted), "r")
    assert len({id(spec.grammar) for [spec] in specs}) == 1
    assert len({id(spec.sampling) for [spec] in specs}) == 1


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


MESSAGE_FIELDS = fields_of(
    chat.ChatCompletionSystemMessageParam,
    chat.ChatCompletionDeveloperMessageParam,
    chat.ChatCompletionUserMessageParam,
    chat.ChatCompletionAssistantMessageParam,
) - {"role", "content", "tool_calls"}


@pytest.mark.parametrize("field", [*sorted(MESSAGE_FIELDS), "annotations"])
def test_a_null_field_of_a_message_is_taken_and_named(field: str) -> None:
    message = {"role": "assistant", "content": "Red", field: None}
    wanted = read(ChatCompletionRequest, {"messages": [*MESSAGES, message]})
    assert isinstance(wanted, ChatCompletionRequest)
    assert ignored_fields(wanted) == {f"messages[].{field}": f"messages[1].{field}"}


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}], ...])
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_message_may_say_nothing(role: str, content: Any) -> None:
    message = {"role": role} if content is ... else {"role": role, "content": content}
    wanted = read(ChatCompletionRequest, {"messages": [message]})
    assert isinstance(wanted, ChatCompletionRequest)
    assert ignored_fields(wanted) == {}
    [[spec]] = chat_specs(wanted, "r")
    assert spec.prompt == ChatPrompt(messages=(ChatMessage(role=role, content=""),))


def test_fields_that_change_nothing_are_named_once_and_where_they_are() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    settings = {
        "messages": [
            {"role": "user", "content": [part, part], "name": "a"},
            {"role": "assistant", "content": "b", "name": "b", "odd, name\r\n": 1},
        ],
        "user": "me",
        "store": None,
        "unheard_of": None,
        "keep_alive": 5,
        "typical_p": 1,
        "tools": [],
        "min_p": 0.5,
        "stream_options": {"include_usage": True},
    }
    wanted = read(ChatCompletionRequest, settings)
    assert isinstance(wanted, ChatCompletionRequest)
    assert set(ignored_fields(wanted).values()) == {
        "messages[0].content[0].cache_control",
        "messages[0].name",
        "messages[1].odd%2C%20name%0D%0A",
        "user",
        "unheard_of",
        "keep_alive",
        "stream_options",
    }
    streamed = read(ChatCompletionRequest, {**settings, "stream": True, "metadata": {"a": "b"}})
    assert isinstance(streamed, ChatCompletionRequest)
    assert "stream_options" not in ignored_fields(streamed)
    assert "metadata" in ignored_fields(streamed)  # only a whole answer returns it


def test_no_request_has_more_named_than_a_header_holds() -> None:
    message = {"role": "user", **{f"x{index}": index for index in range(5000)}}
    wanted = read(ChatCompletionRequest, {"messages": [message]})
    assert isinstance(wanted, ChatCompletionRequest)
    assert len(ignored_fields(wanted)) == MAX_NAMED


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"typical_p": 1.0}, {"typical_p": 0.9}),
        ({"repeat_penalty": 1}, {"repeat_penalty": 1.1}),
        ({"top_a": 0}, {"top_a": 0.1}),
        ({"mirostat": 0, "mirostat_tau": 5.0}, {"mirostat": 2, "mirostat_tau": 5.0}),
        ({"dry_multiplier": 0.0, "dry_base": 1.75}, {"dry_multiplier": 0.8}),
        ({"skip_special_tokens": True}, {"skip_special_tokens": False}),
        ({"guided_json": None}, {"guided_json": {}, "guided_regex": "a"}),
        ({"bad_words": []}, {"bad_words": ["x"]}),
        ({"options": {}}, {"options": {"temperature": 0}}),
        ({"unheard_of": None}, {"unheard_of": 1}),
        ({"unheard_of": []}, {"unheard_of": False}),
        ({"tools": None, "tool_choice": "none"}, {"tools": [{}], "tool_choice": "none"}),
        ({"echo": False}, {"echo": True}),
        ({"use_beam_search": False}, {"use_beam_search": True}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_field_that_could_change_the_text_is_taken_only_if_it_asks_for_nothing(
    settings: dict[str, Any], refused: dict[str, Any]
) -> None:
    read(ChatCompletionRequest, settings)
    with pytest.raises(ValidationError) as caught:
        read(ChatCompletionRequest, refused)
    assert {error["loc"][0] for error in caught.value.errors()} <= refused.keys()


def test_what_is_on_at_its_neutral_value_is_not_taken_for_it_by_another_type() -> None:
    for settings in ({"skip_special_tokens": 1}, {"typical_p": True}, {"max_tokens": True}):
        with pytest.raises(ValidationError):
            read(ChatCompletionRequest, settings)


@pytest.mark.parametrize(
    ("model", "max_tokens", "expected"),
    [
        (ChatCompletionRequest, None, None),
        (ChatCompletionRequest, -1, None),
        (CompletionRequest, None, 16),
        (CompletionRequest, -1, None),
        (CompletionRequest, 16.0, 16),
        (CompletionRequest, 2**63, 2**32 - 1),
    ],
)
def test_most_tokens_may_be_as_many_as_fit(
    model: type[BaseModel], max_tokens: float | None, expected: int | None
) -> None:
    wanted = read(model, {"max_tokens": max_tokens})
    specs = (
        chat_specs(wanted, "r")
        if isinstance(wanted, ChatCompletionRequest)
        else completion_specs(CompletionRequest.model_validate(wanted.model_dump()), "r")
    )
    assert specs[0][0].max_tokens == expected


@pytest.mark.parametrize(("model", "least"), [(ChatCompletionRequest, 1), (CompletionRequest, 0)])
def test_too_few_tokens_are_refused_with_the_least(model: type[BaseModel], least: int) -> None:
    with pytest.raises(ValidationError, match=f"is -2, must be at least {least}, or -1"):
        read(model, {"max_tokens": -2})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 2}, 2),
        ({"echo": True, "logprobs": 2, "prompt_logprobs": 3}, 3),
        ({"prompt_logprobs": 0}, 0),
    ],
)
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_is_told_of_once_and_only_where_that_is_wanted(
    fields: dict[str, Any], expected: int | None, max_tokens: int
) -> None:
    body = {"prompt": ["x", "y"], "n": 3, "max_tokens": max_tokens, **fields}
    for choices in completion_specs(CompletionRequest.model_validate(body), "r"):
        assert [spec.prompt_logprobs for spec in choices] == [expected, None, None]
        assert {spec.max_tokens for spec in choices} == {max_tokens}


def test_a_top_p_of_nothing_keeps_the_likeliest_token() -> None:
    [[spec]] = completion_specs(CompletionRequest.model_validate({"prompt": "x", "top_p": 0}), "r")
    assert spec.sampling == SamplingParams(temperature=1.0, top_k=1)


def test_a_body_of_unknown_fields_is_not_looked_through_to_its_end() -> None:
    """Each was an error record of its own before one was shown."""
    body = json.dumps({"prompt": "x", **{f"x{index}": index for index in range(100_000)}}).encode()
    with pytest.raises(InvalidArgumentError, match="more than 16 fields"):
        validate(body, CompletionRequest)
    with pytest.raises(InvalidArgumentError, match="x15 is not a field") as caught:
        validate(b'{"prompt": "x", "x15": 1, "x16": 2}', CompletionRequest)
    assert caught.value.field == "x15"


VALUES: tuple[Any, ...] = (
    *(None, "", [], {}, True, False, 0, 1, -1, 0.5, 2**40, "x", "none", "auto", "text"),
    *([""], ["x"], [1], [None], {"x": 1}),
)
MESSAGE = {"role": "user", "content": "x"}
OPENAPI = create_app(Door(Catalog())).openapi()


@pytest.mark.parametrize(
    ("path", "request_type", "body", "place", "model"),
    [
        ("chat/completions", ChatCompletionRequest, {"messages": [MESSAGE]}, (), None),
        ("completions", CompletionRequest, {"prompt": "x"}, (), None),
        (
            "chat/completions",
            ChatCompletionRequest,
            {"messages": [MESSAGE]},
            ("messages", 0),
            Message,
        ),
        (
            "completions",
            CompletionRequest,
            {"prompt": "x", "stream": True, "stream_options": {}},
            ("stream_options",),
            StreamOptions,
        ),
    ],
)
def test_every_value_that_is_taken_is_described(
    path: str,
    request_type: type[ModelRequest],
    body: dict[str, Any],
    place: tuple[str | int, ...],
    model: type[BaseModel] | None,
) -> None:
    operation = OPENAPI["paths"][f"/v1/{path}"]["post"]["requestBody"]
    schema = operation["content"]["application/json"]["schema"]
    described = Draft202012Validator({**schema, "components": OPENAPI["components"]})
    num_taken = 0
    for name, field in (model or request_type).model_fields.items():
        for value in VALUES:
            changed = json.loads(json.dumps(body))
            part = changed
            for key in place:
                part = part[key]
            part[field.alias or name] = value
            try:
                validate(json.dumps(changed).encode(), request_type)
            except InvalidArgumentError:
                continue
            num_taken += 1
            assert described.is_valid(changed), (field.alias or name, value)
    assert num_taken > 0
