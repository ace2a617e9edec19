"""Text is the same with guessed tokens and without, whatever a request asks for.

Real stage servers on sockets; a tiny random model in float32 on the CPU. The slow twin is an engine
over the same stages that guesses nothing. The drafter knows what comes, and is right, wrong, or
right up to a point; so guesses are accepted and rolled back in every place.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from tests.clusters import running_engine
from tests.layer_ranges import split_evenly
from tests.scripted_drafts import ScriptedDrafter
from tests.text_models import tiny_text_model

THREE_STAGES = split_evenly(6, 3)
NUM_TOKENS = 40
PROMPT = (5, 60, 7, 88, 9)

SAMPLED = SamplingParams(temperature=0.8, seed=11)
PENALIZED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "logit_bias": {40: 3.0},
}

SPECS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"sampling": SAMPLED},
    "nucleus": {"sampling": SamplingParams(temperature=1.2, top_p=0.8, seed=12)},
    "top-k": {"sampling": SamplingParams(temperature=2.0, top_k=9, seed=13)},
    "min-p": {"sampling": SamplingParams(temperature=1.5, min_p=0.05, seed=14)},
    "penalized": {"sampling": SamplingParams(**PENALIZED)},
    "penalized and seeded": {"sampling": SamplingParams(temperature=0.9, seed=15, **PENALIZED)},
    "penalized nucleus": {
        "sampling": SamplingParams(temperature=0.9, top_p=0.9, seed=16, **PENALIZED)
    },
    "log-probabilities": {"logprobs": 4, "prompt_logprobs": 3},
    "log-probabilities, seeded": {"logprobs": 2, "sampling": SAMPLED},
    "long minimum": {"min_tokens": 23, "ignore_eos": False, "sampling": SAMPLED},
    "short": {"max_tokens": 2},
    "one": {"max_tokens": 1},
}


class Answer(NamedTuple):
    """What a client sees of a request."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    """Of the tokens, then of the prompt. They differ by rounding where other rows run beside."""
    top_ids: tuple[int, ...]
    reason: FinishReason
    stop_string: str | None
    num_completion_tokens: int


def create_spec(prompt: Sequence[int] = PROMPT, **changes: Any) -> RequestSpec:
    values = {"max_tokens": NUM_TOKENS, "ignore_eos": True, **changes}
    return RequestSpec(prompt=TokenPrompt(token_ids=tuple(prompt)), **values)


async def answer(engine: Engine, spec: RequestSpec) -> Answer:
    token_ids: list[int] = []
    text = ""
    logprobs: list[float] = []
    prompt_logprobs: list[float] = []
    top_ids: list[int] = []
    async for event in await engine.submit(spec):
        if isinstance(event, TokensEvent):
            token_ids += event.token_ids
            text += event.text
            for one in event.logprobs:
                logprobs.append(one.logprob)
                top_ids += (token_id for token_id, _ in one.top)
        elif isinstance(event, PromptLogprobs):
            prompt_logprobs += event.logprobs
        elif isinstance(event, Finished):
            finished = event
    return Answer(
        tuple(token_ids),
        text + finished.text,
        (*logprobs, *prompt_logprobs),
        tuple(top_ids),
        finished.finish_reason,
        finished.stop_string,
        finished.num_completion_tokens,
    )


def assert_same(found: Answer, plain: Answer) -> None:
    assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    assert found._replace(logprobs=()) == plain._replace(logprobs=())


class Oracle:
    """Makes drafters that know the output of every prompt, and guess wrong now and then.

    Args:
        outputs: By prompt, what comes.
        num_right: Guessed tokens that are right before one that is wrong.
    """

    def __init__(self, outputs: dict[tuple[int, ...], tuple[int, ...]], num_right: int) -> None:
        self._outputs = outputs
        self._num_right = num_right

    def __call__(self, prompt: Sequence[int], output: Sequence[int]) -> ScriptedDrafter:
        def go_on(whole: tuple[int, ...]) -> tuple[int, ...]:
            coming = self._outputs[tuple(prompt)][len(whole) - len(prompt) :]
            right = coming[: self._num_right]
            return (*right, (coming[len(right)] + 1) % 100) if len(coming) > len(right) else right

        return ScriptedDrafter(prompt, output, go_on)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("model"))


NO_LOOKUP = {"prompt_lookup": False}


async def answers(
    model: Path, specs: Sequence[RequestSpec], oracle: Oracle | None, **settings: Any
) -> list[Answer]:
    """Runs requests one after another; asserts that guesses were made, or none."""
    async with running_engine(
        model, THREE_STAGES, coordinator=NO_LOOKUP, make_drafter=oracle, **settings
    ) as engine:
        found = [await answer(engine, spec) for spec in specs]
        figures = engine.figures()
    assert (figures.num_draft_tokens > 0) == (oracle is not None)
    return found


def known(specs: Sequence[RequestSpec], plain: Sequence[Answer]) -> dict[Any, tuple[int, ...]]:
    return {
        tuple(spec.prompt.token_ids): one.token_ids  # type: ignore[union-attr]
        for spec, one in zip(specs, plain, strict=True)
    }


@pytest.mark.parametrize("num_right", [0, 1, 3, 99])
async def test_an_answer_is_the_same_whatever_is_guessed(model: Path, num_right: int) -> None:
    specs = [create_spec((*PROMPT, index), **SPECS[name]) for index, name in enumerate(SPECS)]
    plain = await answers(model, specs, None)
    oracle = Oracle(known(specs, plain), num_right)
    guessed = await answers(model, specs, oracle)
    for one, other in zip(guessed, plain, strict=True):
        assert_same(one, other)


async def test_guesses_that_are_right_save_passes(model: Path) -> None:
    specs = [create_spec()]
    plain = await answers(model, specs, None)
    async with running_engine(
        model, THREE_STAGES, coordinator=NO_LOOKUP, make_drafter=Oracle(known(specs, plain), 99)
    ) as engine:
        *_, finished = [event async for event in await engine.submit(specs[0])]
        figures = engine.figures()
    assert isinstance(finished, Finished)
    assert finished.timings is not None
    num_passes = finished.timings.num_steps
    assert num_passes + figures.num_accepted_draft_tokens == NUM_TOKENS
    assert num_passes < NUM_TOKENS  # by how much follows from measured times
    assert figures.num_accepted_draft_tokens == figures.num_draft_tokens


async def test_an_end_among_the_guesses_ends_the_text_there(model: Path) -> None:
    """A stop string, a stop token, and the end token of the model, in the middle of a slice."""
    (whole,) = await answers(model, [create_spec()], None)
    stop_string = whole.text[len(whole.text) // 2 :][:3]
    specs = [
        create_spec(stop=(stop_string,)),
        create_spec((*PROMPT, 1), stop_token_ids=frozenset(range(0, 100, 3))),
        create_spec((*PROMPT, 2), ignore_eos=False, sampling=SamplingParams(logit_bias={255: 0.1})),
    ]
    plain = await answers(model, specs, None)
    assert plain[0].reason is plain[1].reason is FinishReason.STOP
    outputs = {
        tuple(spec.prompt.token_ids): whole_output  # type: ignore[union-attr]
        for spec, whole_output in zip(
            specs,
            [
                one.token_ids
                for one in await answers(
                    model,
                    [create_spec(spec.prompt.token_ids) for spec in specs],  # type: ignore[union-attr]
                    None,
                )
            ],
            strict=True,
        )
    }
    assert await answers(model, specs, Oracle(outputs, 99)) == plain


async def test_many_requests_that_preempt_each_other(model: Path) -> None:
    """In little KV memory, with shared prefixes, beside each other."""
    shared = tuple(range(10, 45))
    specs = [
        create_spec((*shared, index), sampling=SAMPLED if index % 2 else SamplingParams())
        for index in range(8)
    ]
    plain = await answers(model, specs, None)
    async with running_engine(
        model,
        THREE_STAGES,
        coordinator=NO_LOOKUP,
        make_drafter=Oracle(known(specs, plain), 3),
        kv_memory_bytes=12 * 16 * 2 * 2 * 2 * 24 * 4,
    ) as engine:
        found = await asyncio.gather(*(answer(engine, spec) for spec in specs))
        figures = engine.figures()
    assert figures.num_preemptions > 0
    assert figures.num_accepted_draft_tokens > 0
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]


async def test_look_up_is_on_unless_it_is_turned_off(model: Path) -> None:
    """A prompt of one phrase over and over, so that there is always something to look up."""
    spec = create_spec((5, 60, 7, 88) * 12, logprobs=0)
    found: list[Answer] = []
    for coordinator, has_guessed in (({}, True), (NO_LOOKUP, False)):
        async with running_engine(model, THREE_STAGES, coordinator=coordinator) as engine:
            found.append(await answer(engine, spec))
            assert (engine.figures().num_draft_tokens > 0) == has_guessed
    assert_same(*found)


async def test_no_more_rows_are_asked_for_than_a_stage_answers(model: Path) -> None:
    """Each row of this request may be wanted whole, and the stage has room for two of them."""
    spec = create_spec(**SPECS["penalized nucleus"])
    (plain,) = await answers(model, [spec], None)
    oracle = Oracle(known([spec], [plain]), 99)
    (guessed,) = await answers(model, [spec], oracle, max_num_seqs=2)
    assert_same(guessed, plain)
