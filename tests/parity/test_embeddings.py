"""Embeddings through the stages, against transformers' last hidden states, pooled in float64."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.events import Finished, TokensEvent
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.engine.engine import Engine
from stagecoach.contract.address import Address
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.clusters import assert_nothing_held, running_engine, running_stage
from tests.layer_ranges import split_evenly
from tests.parity.test_pipeline import expected_tokens
from tests.parity.test_prompt_logprobs import (
    BLOCK,
    ONE_STAGE,
    THREE_STAGES,
    assert_equal_to_reference,
    create_prompt,
    score,
)
from tests.tiny_models import reference_model, tiny_model

torch.set_num_threads(1)

TWO_STAGES = split_evenly(6, 2)
MEAN, LAST = (EmbeddingParams(pooling=one) for one in (Pooling.MEAN, Pooling.LAST))

Vector = npt.NDArray[np.float64]


async def embed(
    engine: Engine, prompt: Sequence[int], params: EmbeddingParams, **fields: Any
) -> Finished:
    """Runs a request that wants an embedding and no output; returns its end."""
    values: dict[str, Any] = {"max_tokens": 0, **fields}
    spec = RequestSpec(prompt=TokenPrompt(token_ids=tuple(prompt)), embedding=params, **values)
    async for event in await engine.submit(spec):
        assert not isinstance(event, TokensEvent)
        if isinstance(event, Finished):
            assert event.finish_reason is FinishReason.LENGTH
            return event
    raise AssertionError("a stream ended without Finished")


def hidden_states(path: Path, prompt: Sequence[int]) -> Vector:
    """float64 `[num_tokens, hidden_size]`, of transformers in float32."""
    reference: Any = reference_model(path)
    with torch.no_grad():
        states = reference.model(torch.tensor([list(prompt)])).last_hidden_state[0]
    expected: Vector = states.double().numpy()
    return expected


def expected_vector(path: Path, prompt: Sequence[int], params: EmbeddingParams) -> Vector:
    """The obvious way."""
    states = hidden_states(path, prompt)
    vector: Vector = states[-1] if params.pooling is Pooling.LAST else states.mean(axis=0)
    vector = vector[: params.dimensions]
    if params.normalize:
        vector = vector / np.linalg.norm(vector)
    return vector


def assert_embedded(
    end: Finished, path: Path, prompt: Sequence[int], params: EmbeddingParams
) -> None:
    assert end.embedding is not None
    np.testing.assert_allclose(
        np.asarray(end.embedding), expected_vector(path, prompt, params), atol=2e-5, rtol=2e-5
    )
    assert (end.num_prompt_tokens, end.num_completion_tokens) == (len(prompt), 0)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "qwen3", "cohere"])
@pytest.mark.parametrize(
    ("ranges", "chunk"),
    [(ONE_STAGE, 512), (TWO_STAGES, 512), (THREE_STAGES, 512), (THREE_STAGES, 7)],
    ids=["whole", "in two", "in three", "in chunks"],
)
async def test_embeddings_are_the_pooled_last_hidden_states_of_transformers(
    family: str, ranges: list[LayerRange], chunk: int, tmp_path: Path
) -> None:
    path, prompt = tiny_model(family, tmp_path), create_prompt(40)
    async with running_engine(path, ranges, max_num_batched_tokens=chunk) as engine:
        for params in (MEAN, LAST):
            assert_embedded(await embed(engine, prompt, params), path, prompt, params)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-gqa-tied", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("pooling", Pooling)
async def test_dimensions_cut_before_the_length_is_made_one(llama: Path, pooling: Pooling) -> None:
    prompt = create_prompt(20)
    async with running_engine(llama, ONE_STAGE) as engine:
        for normalize in (True, False):
            for dimensions in (None, 1, 5):
                params = EmbeddingParams(
                    pooling=pooling, normalize=normalize, dimensions=dimensions
                )
                end = await embed(engine, prompt, params)
                assert_embedded(end, llama, prompt, params)
                if normalize:
                    assert np.linalg.norm(np.asarray(end.embedding)) == pytest.approx(1, abs=1e-6)


async def test_a_prompt_of_one_token_and_one_that_fills_the_context(llama: Path) -> None:
    async with running_engine(llama, THREE_STAGES, max_num_batched_tokens=16) as engine:
        full = create_prompt(engine.served_model.max_model_len)
        for prompt in ([5], full):
            for params in (MEAN, LAST):
                assert_embedded(await embed(engine, prompt, params), llama, prompt, params)


async def test_a_mean_passes_a_hot_prefix_cache_by_and_a_last_state_uses_it(llama: Path) -> None:
    prompt = create_prompt(3 * BLOCK + 5)
    async with running_engine(llama, THREE_STAGES) as engine:
        cold = await embed(engine, prompt, LAST)
        hot = await embed(engine, prompt, LAST)
        mean = await embed(engine, prompt, MEAN)
        after = await score(engine, prompt, prompt_logprobs=None)
    assert (cold.num_cached_tokens, hot.num_cached_tokens) == (0, 3 * BLOCK)
    assert (mean.num_cached_tokens, after.num_cached_tokens) == (0, 3 * BLOCK)
    for end, params in ((cold, LAST), (hot, LAST), (mean, MEAN)):
        assert_embedded(end, llama, prompt, params)
    assert after.token_ids == expected_tokens(llama, prompt, 1)


async def test_prompts_that_share_a_prefix_in_the_making(llama: Path) -> None:
    """One waits for the other's prefix where it may skip it."""
    start = create_prompt(4 * BLOCK)
    prompts = [start + create_prompt(9, seed=i) for i in range(4)]
    async with running_engine(llama, THREE_STAGES, max_num_batched_tokens=16) as engine:
        for params in (MEAN, LAST):
            ends = await asyncio.gather(*(embed(engine, one, params) for one in prompts))
            for end, prompt in zip(ends, prompts, strict=True):
                assert_embedded(end, llama, prompt, params)


async def test_many_at_once_beside_requests_that_generate_and_score(llama: Path) -> None:
    prompts = [create_prompt(5 + 7 * i, seed=i) for i in range(12)]
    async with running_engine(llama, THREE_STAGES, max_num_batched_tokens=24) as engine:
        scored, embedded = await asyncio.gather(
            asyncio.gather(
                *(
                    score(engine, prompt, prompt_logprobs=5 if i % 4 == 3 else None, max_tokens=6)
                    for i, prompt in enumerate(prompts)
                    if i % 2
                )
            ),
            asyncio.gather(
                *(
                    embed(engine, prompt, (MEAN, LAST)[i % 4 // 2])
                    for i, prompt in enumerate(prompts)
                    if i % 2 == 0
                )
            ),
        )
        await assert_nothing_held(engine)
    for i, end in zip(range(0, 12, 2), embedded, strict=True):
        assert_embedded(end, llama, prompts[i], (MEAN, LAST)[i % 4 // 2])
    for i, one in zip(range(1, 12, 2), scored, strict=True):
        assert one.token_ids == expected_tokens(llama, prompts[i], 6)
        if i % 4 == 3:
            assert_equal_to_reference(one.prompt, llama, prompts[i])


async def test_a_prompt_may_be_embedded_and_scored_at_once(llama: Path) -> None:
    prompt = create_prompt(50)
    async with running_engine(llama, THREE_STAGES, max_num_batched_tokens=16) as engine:
        await embed(engine, prompt, LAST)  # so that there is a prefix to pass by
        scored = await score(engine, prompt, max_tokens=0, embedding=MEAN)
    assert scored.end is not None
    assert_equal_to_reference(scored.prompt, llama, prompt)
    assert_embedded(scored.end, llama, prompt, MEAN)


@pytest.mark.parametrize("params", [MEAN, LAST], ids=["mean", "last"])
async def test_after_a_preemption_each_row_counts_once(
    llama: Path, params: EmbeddingParams
) -> None:
    """Three that decode need the blocks of a prompt long before the end of it is computed."""
    others = [create_prompt(4, seed=i) for i in range(3)]
    prompt = create_prompt(200, seed=3)
    # Of 19 blocks three that decode have one each, the prompt has 13, and each that decodes may
    # have one more. They want a third one after 29 tokens; the prompt takes more than 60 steps.
    async with running_engine(
        llama, THREE_STAGES, kv_memory_bytes=114 << 10, max_num_batched_tokens=4
    ) as engine:
        assert (await engine.status()).num_kv_blocks == 19
        streams = [
            await engine.submit(
                RequestSpec(prompt=TokenPrompt(token_ids=other), max_tokens=60, ignore_eos=True)
            )
            for other in others
        ]
        for stream in streams:
            while not isinstance(await anext(stream), TokensEvent):
                pass
        end = await embed(engine, prompt, params)
        for stream in streams:
            stream.cancel()
    assert_embedded(end, llama, prompt, params)
    assert end.timings.num_preemptions > 0


async def test_after_the_loss_of_a_stage_each_row_counts_once(llama: Path) -> None:
    """The stage is lost while the prompts are computed, some of whose rows were added before."""
    prompts = [create_prompt(200 + i, seed=i) for i in range(4)]
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        addresses = [
            await (victim if index == 2 else rest).enter_async_context(
                running_stage(llama, layers, max_num_batched_tokens=8)
            )
            for index, layers in enumerate(THREE_STAGES)
        ]
        config = ClusterConfig(model=str(llama), stages=parse_stages(addresses))
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        embedding = [
            asyncio.create_task(embed(engine, prompt, (MEAN, LAST)[i % 2]))
            for i, prompt in enumerate(prompts)
        ]
        watch = engine.watch_steps()
        while not any(live.sequence.num_pooled_tokens for live in engine._by_id.values()):
            await anext(watch)  # a micro-batch is back
        watch.close()
        await victim.aclose()
        assert not any(one.done() for one in embedding)
        listen = Address.parse(addresses[2], field="listen")
        await rest.enter_async_context(
            running_stage(llama, THREE_STAGES[2], max_num_batched_tokens=8, listen=listen)
        )
        ends = await asyncio.gather(*embedding)
        await assert_nothing_held(engine)
    for i, (end, prompt) in enumerate(zip(ends, prompts, strict=True)):
        assert_embedded(end, llama, prompt, (MEAN, LAST)[i % 2])
    assert sum(end.timings.num_replays for end in ends) > 0
