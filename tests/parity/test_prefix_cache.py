"""Tokens are the same with the prefix cache and without, whoever shares with whom.

Real stage servers on sockets, three of them; tiny random models in float32 on the CPU. Without the
cache is the slow twin: the same cluster with it turned off, or transformers' own `generate`.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from tests.clusters import Output, run_to_length, running_engine, status_when
from tests.layer_ranges import split_evenly
from tests.parity.test_pipeline import expected_tokens
from tests.tiny_models import FAMILIES, tiny_model

THREE_STAGES = split_evenly(6, 3)
BLOCK = 16
"""Tokens a block, the stages' default."""


def create_prompts(*suffix_lengths: int, num_shared: int = 3 * BLOCK + 5) -> list[list[int]]:
    """Prompts that are equal up to a point inside a block."""
    draw = random.Random(1)
    shared = [draw.randrange(3, 128) for _ in range(num_shared)]
    return [[*shared, *(draw.randrange(3, 128) for _ in range(n))] for n in suffix_lengths]


async def run(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_tokens: int = 12,
    sampling: SamplingParams | None = None,
    cache_salt: str | None = None,
) -> Output:
    return await run_to_length(
        engine,
        RequestSpec(
            prompt=TokenPrompt(token_ids=tuple(prompt)),
            sampling=sampling or SamplingParams(),
            max_tokens=max_tokens,
            ignore_eos=True,
            cache_salt=cache_salt,
        ),
    )


def test_the_twin_shares_nothing(llama: Path) -> None:
    """Guards the tests below: what they compare with must not use the cache."""

    async def cached_tokens(**coordinator: Any) -> int:
        first, second = create_prompts(3, 4)
        async with running_engine(llama, THREE_STAGES, coordinator=coordinator) as engine:
            await run(engine, first)
            return (await run(engine, second)).num_cached_tokens

    assert asyncio.run(cached_tokens(prefix_cache=False)) == 0
    assert asyncio.run(cached_tokens()) == 3 * BLOCK


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_generates_the_same_from_a_shared_prefix(
    family: str, tmp_path: Path
) -> None:
    path = tiny_model(family, tmp_path)
    first, second = create_prompts(3, 4, num_shared=2 * BLOCK + 5)
    async with running_engine(path, THREE_STAGES) as engine:
        await run(engine, first)
        output = await run(engine, second)
    assert output == Output(expected_tokens(path, second), 2 * BLOCK)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-gqa-tied", tmp_path_factory.mktemp("llama"))


async def test_a_running_request_is_shared_from_and_goes_on_undisturbed(llama: Path) -> None:
    first, second, third = create_prompts(3, 4, 0)
    async with running_engine(llama, THREE_STAGES) as engine:
        running = asyncio.create_task(run(engine, first, max_tokens=80))
        await status_when(engine, lambda status: status.num_generated_tokens >= 20)
        outputs = [*await asyncio.gather(run(engine, second), run(engine, third))]
        assert not running.done()
        assert (await running).token_ids == expected_tokens(llama, first, 80)
    assert outputs == [
        Output(expected_tokens(llama, second), 3 * BLOCK),
        Output(expected_tokens(llama, third), 3 * BLOCK),
    ]


async def test_a_conversation_that_continues_shares_what_was_generated(llama: Path) -> None:
    (prompt,) = create_prompts(3)
    async with running_engine(llama, THREE_STAGES) as engine:
        for _ in range(3):
            output = await run(engine, prompt, max_tokens=20)
            assert output.token_ids == expected_tokens(llama, prompt, 20)
            prompt = [*prompt, *output.token_ids, 5, 6, 7]
        num_computed = len(prompt) - 3 - 1
        assert (await run(engine, prompt)).num_cached_tokens == num_computed // BLOCK * BLOCK


async def test_a_seed_gives_the_same_tokens_with_and_without_the_cache(llama: Path) -> None:
    sampling = SamplingParams(temperature=1.2, top_p=0.95, repetition_penalty=1.1, seed=3)
    first, second = create_prompts(3, 4)
    outputs = []
    for prefix_cache in (False, True):
        limits = {"prefix_cache": prefix_cache}
        async with running_engine(llama, THREE_STAGES, coordinator=limits) as engine:
            await run(engine, first)
            outputs.append(await run(engine, second, max_tokens=40, sampling=sampling))
    without, cached = outputs
    assert cached.token_ids == without.token_ids != expected_tokens(llama, second, 40)
    assert (without.num_cached_tokens, cached.num_cached_tokens) == (0, 3 * BLOCK)


async def test_requests_that_come_together_compute_their_prefix_once(llama: Path) -> None:
    num_shared = 9 * BLOCK
    prompts = create_prompts(1, 2, 3, 30, 60, 1, num_shared=num_shared)
    limits = {"max_num_batched_tokens": 48}
    async with running_engine(llama, THREE_STAGES, coordinator=limits) as engine:
        outputs = await asyncio.gather(*(run(engine, prompt) for prompt in prompts))
        status = await engine.status()
    expected = [expected_tokens(llama, prompt) for prompt in prompts]
    assert [output.token_ids for output in outputs] == expected
    assert status.num_prefix_hit_tokens == (len(prompts) - 1) * num_shared
    assert sorted(output.num_cached_tokens for output in outputs) == [0] + [num_shared] * 5


async def test_short_prompts_among_long_ones_generate_what_they_would_alone(llama: Path) -> None:
    """Prompts pass each other in every micro-batch; the slow twin runs one at a time."""
    draw = random.Random(2)
    lengths = (150, 5, 140, 30, 1, 130, 60, 2)
    prompts = [[draw.randrange(3, 128) for _ in range(length)] for length in lengths]
    limits = {"max_num_batched_tokens": 20, "prefix_cache": False}
    async with running_engine(llama, THREE_STAGES, coordinator=limits) as engine:
        outputs = await asyncio.gather(*(run(engine, prompt) for prompt in prompts))
    assert [output.token_ids for output in outputs] == [
        expected_tokens(llama, prompt) for prompt in prompts
    ]


async def test_under_pressure_of_memory_and_slots_all_generate_what_they_would_alone(
    llama: Path,
) -> None:
    """Prefixes are evicted, requests are preempted, and both are shared from meanwhile."""
    prompts = [
        *create_prompts(3, 4, 20, 21),
        *create_prompts(1, 30, 2, num_shared=20),
        *create_prompts(9, 9, 9, num_shared=2 * BLOCK),
    ]
    limits = {"max_num_batched_tokens": 24, "max_num_seqs": 4}
    async with running_engine(
        llama, THREE_STAGES, coordinator=limits, kv_memory_bytes=64 << 10, max_num_seqs=5
    ) as engine:
        status = await engine.status()
        assert 8 <= status.num_kv_blocks <= 16
        outputs: list[Output] = []
        for _ in range(2):
            outputs += await asyncio.gather(*(run(engine, p, max_tokens=30) for p in prompts))
        status = await engine.status()
        assert status.num_preemptions > 0
        assert status.num_prefix_hit_tokens > 0
        assert status.num_prefix_hit_tokens == sum(output.num_cached_tokens for output in outputs)
    expected = [expected_tokens(llama, prompt, 30) for prompt in prompts]
    assert [output.token_ids for output in outputs] == expected * 2


async def test_requests_of_different_salts_share_nothing(llama: Path) -> None:
    first, second = create_prompts(3, 4)
    expected = expected_tokens(llama, second)
    async with running_engine(llama, THREE_STAGES) as engine:
        await run(engine, first, cache_salt="alice")
        assert await run(engine, second, cache_salt="bob") == Output(expected, 0)
        assert await run(engine, second) == Output(expected, 0)
        assert await run(engine, second, cache_salt="alice") == Output(expected, 3 * BLOCK)
