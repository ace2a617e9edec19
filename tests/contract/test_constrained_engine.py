"""Output that must have a form, over real stages: a random model proves the mask."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import pytest

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import Finished, TokensEvent
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.model_files import open_model
from tests.clusters import assert_nothing_held, running_engine, running_stage, status_when
from tests.layer_ranges import split_evenly
from tests.text_models import BYTE_TOKENS, EOS_TOKEN_ID, tiny_text_model
from tests.tiny_models import tiny_model

THREE_STAGES = split_evenly(6, 3)
PROMPT = (5, 6, 7, 8, 9)
MAX_TOKENS = 900

SHORT_STRING = {"type": "string", "maxLength": 4}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"a": SHORT_STRING, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": SHORT_STRING, "minItems": 2, "maxItems": 3},
    "integer": {"type": "integer", "minimum": -17, "maximum": 4211},
    "number": {"type": "number", "minimum": 0.5, "maximum": 2.25, "multipleOf": 0.25},
    "enum": {"enum": ["red", {"deep": [1, None]}, 7, "\u00e9\U0001f600"]},
    "const": {"const": {"k": ["v", 1.5]}},
    "choice": {"anyOf": [{"type": "boolean"}, {"type": "array", "maxItems": 0}]},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{2}$"},
    "address": {"type": "string", "format": "ipv4"},
    "uuid": {"type": "string", "format": "uuid"},
    "nested": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"enum": [1, 2]},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "both": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 99}]},
}


class Output(NamedTuple):
    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason
    num_preemptions: int


def schema_grammar(name: str) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(SCHEMAS[name]))


def regex_grammar(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


def create_spec(grammar: Grammar, **changes: Any) -> RequestSpec:
    fields: dict[str, Any] = {
        "prompt": TokenPrompt(token_ids=PROMPT),
        "max_tokens": MAX_TOKENS,
        "sampling": SamplingParams(temperature=1.0, seed=1),
        "grammar": grammar,
    }
    return RequestSpec(**{**fields, **changes})


def sampled(grammar: Grammar, seed: int) -> RequestSpec:
    return create_spec(grammar, sampling=SamplingParams(temperature=1.0, seed=seed))


async def run(engine: Engine, spec: RequestSpec) -> Output:
    text = ""
    token_ids: tuple[int, ...] = ()
    async for event in await engine.submit(spec):
        if isinstance(event, TokensEvent):
            text += event.text
            token_ids += event.token_ids
    assert isinstance(event, Finished)
    return Output(text + event.text, token_ids, event.finish_reason, event.timings.num_preemptions)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[Engine]:
    async with running_engine(model, THREE_STAGES) as engine:
        yield engine


async def test_a_random_model_makes_valid_json_for_every_schema(engine: Engine) -> None:
    specs = [(name, sampled(schema_grammar(name), seed)) for name in SCHEMAS for seed in range(3)]
    outputs = await asyncio.gather(*(run(engine, spec) for _, spec in specs))
    for (name, _), output in zip(specs, outputs, strict=True):
        assert output.reason is FinishReason.STOP, (name, output.text)
        value = json.loads(output.text)
        jsonschema_rs.validator_for(SCHEMAS[name], validate_formats=True).validate(value)
    assert len({output.text for output in outputs}) > len(SCHEMAS)


async def test_any_object_is_one_json_object(engine: Engine) -> None:
    grammar = Grammar(kind=GrammarKind.JSON_OBJECT)
    bias = {BYTE_TOKENS.index("}"): 6.0, BYTE_TOKENS.index('"'): 6.0}
    sampling = SamplingParams(temperature=1.0, seed=3, logit_bias=bias)
    output = await run(engine, create_spec(grammar, sampling=sampling))
    assert output.reason is FinishReason.STOP
    assert isinstance(json.loads(output.text), dict)


async def test_a_regex_matches_the_whole_output_however_tokens_are_chosen(engine: Engine) -> None:
    pattern = r"(ab|é|[x-z]{2}){3,5}[0-9]"
    choices = [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(temperature=1.0, seed=2, top_p=0.6),
        SamplingParams(temperature=1.0, seed=3, top_k=3, frequency_penalty=1.0),
        SamplingParams(temperature=5.0, seed=4, min_p=0.01),
        SamplingParams(
            temperature=1.0, seed=5, logit_bias={BYTE_TOKENS.index("x"): -100.0, 0: 100.0}
        ),
    ]
    specs = [create_spec(regex_grammar(pattern), sampling=sampling) for sampling in choices]
    for output in await asyncio.gather(*(run(engine, spec) for spec in specs)):
        assert re.fullmatch(pattern, output.text)
        assert output.reason is FinishReason.STOP


async def test_a_lark_grammar_is_followed(engine: Engine) -> None:
    lark = 'start: "(" inner ")"\ninner: /[ab]{1,3}/ | start'
    output = await run(engine, create_spec(Grammar(kind=GrammarKind.LARK, text=lark)))
    depth = output.text.count("(")
    assert re.fullmatch(r"\(+[ab]{1,3}\)+", output.text)
    assert output.text == "(" * depth + output.text.strip("()") + ")" * depth


async def test_an_output_that_is_complete_stops_without_an_end_token(engine: Engine) -> None:
    output = await run(engine, create_spec(regex_grammar("[0-9]{5}"), max_tokens=5))
    assert (len(output.token_ids), output.reason) == (5, FinishReason.STOP)


async def test_max_tokens_may_cut_the_output_short(engine: Engine) -> None:
    output = await run(engine, create_spec(regex_grammar("[0-9]{5}"), max_tokens=4))
    assert re.fullmatch("[0-9]{4}", output.text)
    assert output.reason is FinishReason.LENGTH


async def test_an_end_token_ends_an_output_only_where_it_may(engine: Engine) -> None:
    """The model wants nothing but to end."""
    eager = SamplingParams(logit_bias={EOS_TOKEN_ID: 100.0})
    spec = create_spec(regex_grammar("[0-9]{3}[a-z]*"), sampling=eager, max_tokens=10)
    output = await run(engine, spec)
    assert re.fullmatch("[0-9]{3}", output.text)
    assert output.reason is FinishReason.STOP


async def test_ignored_end_tokens_are_not_chosen_while_anything_else_may_follow(
    engine: Engine,
) -> None:
    eager = SamplingParams(logit_bias={EOS_TOKEN_ID: 100.0})
    spec = create_spec(
        regex_grammar("[0-9]{3}[a-z]{0,4}"), sampling=eager, max_tokens=10, ignore_eos=True
    )
    output = await run(engine, spec)
    assert re.fullmatch("[0-9]{3}[a-z]{4}", output.text)
    assert output.reason is FinishReason.STOP


async def test_a_stop_string_ends_a_constrained_output(engine: Engine) -> None:
    output = await run(engine, create_spec(regex_grammar("[0-9]{2}end[0-9]{2}"), stop=("end",)))
    assert re.fullmatch("[0-9]{2}", output.text)
    assert output.reason is FinishReason.STOP


@pytest.fixture(scope="module")
def alone() -> dict[int, Output]:
    """What some requests bring when each runs by itself, by seed; filled by the first test."""
    return {}


NUM_SEEDS = 6
"""Batches round differently, so a seed must not let a draw fall between two equal logits."""


def mixed_spec(seed: int) -> RequestSpec:
    """Some constrained and one free, all sampled, none short."""
    free: dict[str, Any] = {"grammar": None, "max_tokens": 50, "ignore_eos": True}
    return replace(
        create_spec(
            regex_grammar("([a-z]{3}|[0-9]{4}| é){16}"),
            prompt=TokenPrompt(token_ids=PROMPT * (seed + 2)),
            max_tokens=70,
            sampling=SamplingParams(temperature=1.0, seed=40 + seed, presence_penalty=0.1),
        ),
        **(free if seed == NUM_SEEDS - 1 else {}),
    )


async def outputs_alone(model: Path, alone: dict[int, Output]) -> dict[int, Output]:
    if not alone:
        async with running_engine(model, THREE_STAGES) as engine:
            for seed in range(NUM_SEEDS):
                alone[seed] = await run(engine, mixed_spec(seed))
    return alone


@pytest.mark.parametrize(
    ("coordinator", "stage"),
    [
        ({}, {}),
        ({"max_num_batched_tokens": 7}, {}),
        ({"num_micro_batches": 3}, {}),
        ({"num_micro_batches": 2}, {"kv_memory_bytes": 140_000}),
    ],
    ids=["together", "in chunks", "in three micro-batches", "preempted"],
)
async def test_a_seed_gives_the_same_constrained_output_whatever_happens(
    model: Path, alone: dict[int, Output], coordinator: dict[str, Any], stage: dict[str, Any]
) -> None:
    expected = await outputs_alone(model, alone)
    async with running_engine(model, THREE_STAGES, coordinator=coordinator, **stage) as engine:
        outputs = await asyncio.gather(*(run(engine, mixed_spec(i)) for i in range(NUM_SEEDS)))
    assert [output.token_ids for output in outputs] == [
        expected[seed].token_ids for seed in range(NUM_SEEDS)
    ]
    if "kv_memory_bytes" in stage:
        assert sum(output.num_preemptions for output in outputs) > 0


async def test_a_constrained_output_survives_the_loss_of_a_stage(
    model: Path, alone: dict[int, Output]
) -> None:
    expected = await outputs_alone(model, alone)
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        kept = await rest.enter_async_context(running_stage(model, THREE_STAGES[0]))
        lost = await victim.enter_async_context(running_stage(model, THREE_STAGES[1]))
        last = await rest.enter_async_context(running_stage(model, THREE_STAGES[2]))
        config = ClusterConfig(model=str(model), stages=parse_stages([kept, lost, last]))
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        # So that all of the next find their grammars, and run side by side.
        await run(engine, mixed_spec(0))
        running = [asyncio.create_task(run(engine, mixed_spec(i))) for i in range(NUM_SEEDS)]
        await status_when(engine, lambda now: now.num_generated_tokens >= 130)
        await victim.aclose()
        assert sum(not task.done() for task in running) >= 2
        listen = Address.parse(lost, field="listen")
        await rest.enter_async_context(running_stage(model, THREE_STAGES[1], listen=listen))
        outputs = await asyncio.gather(*running)
        assert [output.token_ids for output in outputs] == [
            expected[seed].token_ids for seed in range(NUM_SEEDS)
        ]
        await assert_nothing_held(engine)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (regex_grammar("("), "unclosed group"),
        (regex_grammar("(?=a)b"), "look-around"),
        (Grammar(kind=GrammarKind.LARK, text='begin: "a"'), "no start rule"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "strin"}'), "Invalid type: strin"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"not": {}}'), "not"),
        (
            Grammar(
                kind=GrammarKind.JSON_SCHEMA,
                text='{"not": {}, "x-guidance": {"lenient": true}}',
            ),
            "not",
        ),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"$ref": "http://h/s"}'), "http://h/s"),
        (Grammar(kind=GrammarKind.JSON_SCHEMA, text=" false"), "Unsatisfiable"),
    ],
)
async def test_a_wrong_grammar_is_refused_by_field_and_the_engine_serves_on(
    engine: Engine, grammar: Grammar, message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)) as caught:
        await engine.submit(create_spec(grammar))
    assert caught.value.field == grammar.field
    assert engine.num_requests == 0


async def test_a_grammar_that_grows_too_complex_fails_its_request_alone(engine: Engine) -> None:
    hostile = create_spec(regex_grammar("[bc]{3}a{1000000}"))
    fine = create_spec(regex_grammar("[0-9]{40}"))
    good = asyncio.create_task(run(engine, fine))
    with pytest.raises(InvalidArgumentError, match=r"grammar\.regex: .*too many"):
        await run(engine, hostile)
    assert (await good).reason is FinishReason.STOP


async def test_a_model_without_a_tokenizer_takes_no_grammar(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    async with running_engine(path, split_evenly(6, 1)) as engine:
        with pytest.raises(InvalidArgumentError, match="no tokenizer"):
            await engine.submit(create_spec(regex_grammar("a")))


async def test_cancelling_before_the_grammar_is_compiled_starts_nothing(engine: Engine) -> None:
    submitting = asyncio.create_task(engine.submit(create_spec(regex_grammar("[0-9]{100}"))))
    await asyncio.sleep(0)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert engine.num_requests == 0


async def test_an_engine_that_stops_meanwhile_refuses_a_compiled_request(model: Path) -> None:
    async with running_engine(model, THREE_STAGES) as engine:
        submitting = asyncio.create_task(engine.submit(create_spec(regex_grammar("[0-9]{100}"))))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close(grace_s=0.0))
        with pytest.raises(UnavailableError, match="shutting down"):
            await submitting
        await closing
