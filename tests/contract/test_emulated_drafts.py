"""A draft model that is not there: emulated stages show what one brings that is right so often."""

from pathlib import Path
from typing import Any

import pytest

from coordinator.core.events import Finished, TokensEvent
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from stagecoach.contract.errors import InvalidArgumentError
from tests.clusters import running_engine
from tests.emulated_tokens import expected_token
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

EMULATED: dict[str, Any] = {
    "engine": "emulated",
    "emulate": "rtx-3060-12gb",
    "kv_memory_bytes": 64 << 20,
}
MODEL = "shape:llama-160m"
RANGES = split_evenly(12, 3)
NUM_TOKENS = 300
PROMPT = (1, 15043, 3186)


async def run(engine: Engine, **changes: Any) -> tuple[list[int], Finished]:
    spec = RequestSpec(
        prompt=TokenPrompt(token_ids=PROMPT), max_tokens=NUM_TOKENS, ignore_eos=True, **changes
    )
    token_ids: list[int] = []
    async for event in await engine.submit(spec):
        if isinstance(event, TokensEvent):
            token_ids += event.token_ids
        elif isinstance(event, Finished):
            finished = event
    return token_ids, finished


@pytest.mark.parametrize("acceptance", [0.0, 0.7, 1.0])
async def test_guesses_are_right_so_often_and_the_text_is_the_same(acceptance: float) -> None:
    expected = list(PROMPT)
    while len(expected) < len(PROMPT) + NUM_TOKENS:
        expected.append(expected_token(expected))
    coordinator = {"draft_acceptance": acceptance}
    async with running_engine(MODEL, RANGES, coordinator=coordinator, **EMULATED) as engine:
        token_ids, finished = await run(engine)
        figures = engine.figures()
    assert token_ids == expected[len(PROMPT) :]
    assert finished.timings is not None
    assert finished.timings.num_steps + figures.num_accepted_draft_tokens == NUM_TOKENS
    # How many are made follows from measured times; what becomes of them does not.
    assert figures.num_draft_tokens > 0
    assert (figures.num_accepted_draft_tokens > 0) == (acceptance > 0)
    is_always_right = figures.num_accepted_draft_tokens == figures.num_draft_tokens
    assert is_always_right == (acceptance == 1)


async def test_seeded_text_is_the_same_too() -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    found = []
    for acceptance in (None, 0.7):
        coordinator = {"draft_acceptance": acceptance, "prompt_lookup": False}
        async with running_engine(MODEL, RANGES, coordinator=coordinator, **EMULATED) as engine:
            found.append((await run(engine, sampling=sampling))[0])
    assert found[0] == found[1]


async def test_real_stages_have_no_emulated_draft(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    with pytest.raises(InvalidArgumentError, match="draft_acceptance is for emulated stages"):
        async with running_engine(path, split_evenly(6, 2), coordinator={"draft_acceptance": 0.5}):
            pass
