"""The split model equals the unsplit one: greedy tokens against transformers' own `generate`.

Everything is real: stage servers on sockets, the scheduler, paged KV. The models are tiny and
random, in float32 on the CPU, where equality is exact.
"""

import asyncio
from pathlib import Path

import pytest
import torch

from stagecoach.contract.layer_range import LayerRange
from tests.clusters import generate, running_engine, status_when
from tests.layer_ranges import split_evenly
from tests.tiny_models import FAMILIES, reference_model, tiny_model, unsplit_tokens

NUM_TOKENS = 12
NUM_LAYERS = 6
SPLITS = [1, 2, 3, 5]


def create_prompts(count: int, *, vocab_size: int = 128) -> list[list[int]]:
    """Different prompts of different lengths, from 3 tokens up."""
    generator = torch.Generator().manual_seed(7)
    return [
        [int(i) for i in torch.randint(3, vocab_size, (3 + 5 * n,), generator=generator)]
        for n in range(count)
    ]


def expected_tokens(path: Path, prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    """What transformers generates greedily, the whole model in one piece."""
    torch.set_num_threads(1)
    return unsplit_tokens(reference_model(path), prompt, num_tokens)


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_generates_the_same_through_any_number_of_stages(
    family: str, tmp_path: Path
) -> None:
    path = tiny_model(family, tmp_path)
    prompt = create_prompts(5)[-1]
    expected = expected_tokens(path, prompt)
    for num_stages in SPLITS:
        ranges = split_evenly(NUM_LAYERS, num_stages)
        async with running_engine(path, ranges) as engine:
            assert await generate(engine, prompt, NUM_TOKENS) == expected


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-gqa-tied", tmp_path_factory.mktemp("llama"))


THREE_STAGES = split_evenly(NUM_LAYERS, 3)


@pytest.mark.parametrize("ranges", [["0:1", "1:5", "5:6"], ["0:4", "4:6"]])
async def test_uneven_ranges_generate_the_same(llama: Path, ranges: list[str]) -> None:
    prompt = create_prompts(4)[-1]
    async with running_engine(llama, [LayerRange.parse(text) for text in ranges]) as engine:
        assert await generate(engine, prompt, NUM_TOKENS) == expected_tokens(llama, prompt)


async def test_sixteen_stages_of_one_layer_each(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path, num_hidden_layers=16)
    prompt = create_prompts(3)[-1]
    async with running_engine(path, split_evenly(16, 16)) as engine:
        assert await generate(engine, prompt, NUM_TOKENS) == expected_tokens(path, prompt)


@pytest.mark.parametrize("budget", [1, 3, 7])
async def test_a_prompt_in_chunks_generates_the_same(llama: Path, budget: int) -> None:
    prompt = create_prompts(6)[-1]
    limits = {"max_num_batched_tokens": budget}
    async with running_engine(llama, THREE_STAGES, coordinator=limits) as engine:
        assert await generate(engine, prompt, NUM_TOKENS) == expected_tokens(llama, prompt)


async def test_a_batch_of_eight_generates_what_each_would_alone(llama: Path) -> None:
    prompts = create_prompts(8)
    async with running_engine(llama, THREE_STAGES) as engine:
        outputs = await asyncio.gather(*(generate(engine, p, NUM_TOKENS) for p in prompts))
    assert outputs == [expected_tokens(llama, prompt) for prompt in prompts]


async def test_a_request_that_joins_midway_generates_what_it_would_alone(llama: Path) -> None:
    first, second = create_prompts(4)[-2:]
    async with running_engine(llama, THREE_STAGES) as engine:
        running = asyncio.create_task(generate(engine, first, 40))
        await status_when(engine, lambda status: status.num_generated_tokens >= 5)
        assert await generate(engine, second, NUM_TOKENS) == expected_tokens(llama, second)
        assert not running.done()
        assert await running == expected_tokens(llama, first, 40)


async def test_preempted_requests_generate_what_they_would_undisturbed(llama: Path) -> None:
    prompts = create_prompts(6)
    num_tokens = 40
    # Room for the longest request and little more, so that they push each other out.
    async with running_engine(llama, THREE_STAGES, kv_memory_bytes=40 << 10) as engine:
        outputs = await asyncio.gather(*(generate(engine, p, num_tokens) for p in prompts))
        assert (await engine.status()).num_preemptions > 0
    assert outputs == [expected_tokens(llama, prompt, num_tokens) for prompt in prompts]
