"""Emulated stages on real sockets: the wire of a real stage, and tokens of the sequence alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.events import Finished
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from stage_server.compute.noise import Contenders
from stage_server.core.config import StageConfig
from stage_server.emulation.emulated_engine import EmulatedEngine
from stage_server.process.build_engine import build_engine
from stagecoach.contract.errors import (
    InsufficientMemoryError,
    InvalidArgumentError,
    KvFullError,
    StaleStateError,
    UnsupportedModelError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.stage_info import StageInfo
from stagecoach.model_files import open_model
from stagecoach.v1 import stage_pb2, tensor_pb2
from tests.clusters import generate, running_engine
from tests.contract.stage_builders import OpenedStream, RunningStage, micro_batch, running_stage
from tests.emulated_tokens import expected_token
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

MODEL = "shape:llama-160m"
HIDDEN_SIZE = 768
EMULATED: dict[str, Any] = {
    "engine": "emulated",
    "emulate": "h200-141gb",
    "kv_memory_bytes": 32 << 20,
}
MIDDLE = LayerRange(4, 8)


def create_config(layers: LayerRange = MIDDLE, **changes: Any) -> StageConfig:
    settings = {**EMULATED, "max_num_seqs": 8, "max_num_batched_tokens": 64, **changes}
    return StageConfig(**{"model": MODEL, "layers": layers, **settings})


@asynccontextmanager
async def emulated_stage(
    layers: LayerRange = MIDDLE, **changes: Any
) -> AsyncIterator[tuple[RunningStage, OpenedStream]]:
    config = create_config(layers, **changes)
    files = open_model(config.model)
    async with running_stage(build_engine(config, files)) as stage:
        stream = await stage.open(
            fingerprint=files.fingerprint,
            layers=stage_pb2.LayerRange(start=layers.start, end=layers.end),
        )
        yield stage, stream


def with_hidden_states(batch: stage_pb2.MicroBatch) -> stage_pb2.MicroBatch:
    """The same for a later stage."""
    num_tokens = len(batch.token_ids.ids)
    batch.hidden_states.CopyFrom(
        tensor_pb2.Tensor(
            dtype=tensor_pb2.DTYPE_FLOAT16, shape=[num_tokens, 768], data=bytes(num_tokens * 1536)
        )
    )
    return batch


async def test_it_says_that_it_is_emulated_and_what_it_would_hold() -> None:
    async with emulated_stage() as (stage, _):
        info = await stage.info()
        assert info.emulated
        assert info.device == "emulated h200-141gb"
        assert info.dtype == info.compute_dtype == info.kv_dtype == "float16"
        assert info.hidden_states_dtype == tensor_pb2.DTYPE_FLOAT16
        assert info.weight_bytes == 4 * 2 * (4 * 768**2 + 3 * 768 * 3072 + 2 * 768)
        assert info.num_kv_blocks == (32 << 20) // (16 * 4 * 2 * 768 * 2)
        assert info.kv_bytes <= 32 << 20


async def test_hidden_states_have_the_size_of_real_ones() -> None:
    async with emulated_stage() as (_, stream):
        result = await stream.run(with_hidden_states(micro_batch((0, 0, 5), (1, 0, 2))))
        assert list(result.hidden_states.shape) == [7, 768]
        assert result.hidden_states.dtype == tensor_pb2.DTYPE_FLOAT16
        assert len(result.hidden_states.data) == 7 * 768 * 2


async def test_it_takes_at_least_the_time_of_the_gpu() -> None:
    async with emulated_stage(emulate="rtx-3050-8gb", efficiency=0.5) as (stage, stream):
        info = await stage.info()
        result = await stream.run(with_hidden_states(micro_batch((0, 0, 1))))
        assert result.timings.compute_ns >= info.weight_bytes / 224e9 / 0.5 * 1e9


async def test_slots_and_blocks_are_refused_as_on_a_real_stage() -> None:
    async with emulated_stage(kv_memory_bytes=2 * 16 * 4 * 2 * 768 * 2) as (stage, stream):
        gap = await stream.failure(with_hidden_states(micro_batch((0, 3, 1))))
        assert isinstance(gap, StaleStateError)
        full = await stream.failure(with_hidden_states(micro_batch((0, 0, 33))))
        assert isinstance(full, KvFullError)
        wrong_input = await stream.failure(micro_batch((0, 0, 1)))
        assert isinstance(wrong_input, InvalidArgumentError)
        assert (await stage.info()).num_free_kv_blocks == 2
        await stream.run(with_hidden_states(micro_batch((0, 0, 32))))
        assert (await stage.info()).num_free_kv_blocks == 0
        await stream.close()
        await stage.until_free()


@pytest.mark.parametrize("num_stages", [1, 2, 3, 12])
async def test_greedy_tokens_are_the_same_whatever_the_stages_batch_and_chunks(
    num_stages: int,
) -> None:
    prompts = [[7], [1, 2, 3], [1, 2, 4], list(range(100, 150))]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(12):
            tokens.append(expected_token(tokens))
        expected.append(tokens[len(prompt) :])
    ranges = split_evenly(12, num_stages)
    async with running_engine(
        MODEL, ranges, coordinator={"max_num_batched_tokens": 9}, **EMULATED
    ) as engine:
        alone = [await generate(engine, prompt, 12) for prompt in prompts]
        together = await asyncio.gather(*(generate(engine, prompt, 12) for prompt in prompts))
    assert alone == expected
    assert together == expected


async def test_a_full_pool_preempts_and_changes_no_token() -> None:
    ranges = split_evenly(12, 2)
    tight = {**EMULATED, "kv_memory_bytes": 6 * 16 * 6 * 2 * 768 * 2}
    async with running_engine(MODEL, ranges, **tight) as engine:
        found = await asyncio.gather(*(generate(engine, [9, n], 40) for n in range(4)))
        assert (await engine.status()).num_preemptions > 0
    for n, tokens in enumerate(found):
        assert tokens == [expected_token([9, n, *tokens[:i]]) for i in range(40)]


async def test_samplers_that_need_whole_rows_get_them() -> None:
    sampling = SamplingParams(temperature=1.5, top_p=0.999, seed=3)
    async with running_engine(MODEL, [LayerRange(0, 12)], **EMULATED) as engine:
        first = await generate(engine, [1, 2, 3], 16, sampling=sampling)
        again = await generate(engine, [1, 2, 3], 16, sampling=sampling)
    assert first == again
    assert first != [expected_token([1, 2, 3, *first[:i]]) for i in range(16)]


async def test_a_last_stage_that_knows_no_noise_gives_the_same_text_from_whole_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = SamplingParams(temperature=1.5, presence_penalty=0.5, seed=3)
    async with running_engine(MODEL, [LayerRange(0, 12)], **EMULATED) as engine:
        expected = await generate(engine, [1, 2, 3], 16, sampling=sampling)

    def old_info(engine: EmulatedEngine) -> StageInfo:
        return replace(engine._info, adds_noise=False)

    def find_nothing(*_: object) -> Contenders:
        raise AssertionError("an old stage was asked for contenders")

    monkeypatch.setattr(EmulatedEngine, "info", property(old_info))
    monkeypatch.setattr("stage_server.emulation.logits.find_contenders", find_nothing)
    async with running_engine(MODEL, [LayerRange(0, 12)], **EMULATED) as engine:
        assert await generate(engine, [1, 2, 3], 16, sampling=sampling) == expected


async def test_prompts_are_not_told_of_by_a_last_stage_that_does_not_know_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = RequestSpec(
        prompt=TokenPrompt(token_ids=(1, 2, 3)), prompt_logprobs=2, max_tokens=1, ignore_eos=True
    )

    def old_info(engine: EmulatedEngine) -> StageInfo:
        return replace(engine._info, answers_prompt_logits=False)

    monkeypatch.setattr(EmulatedEngine, "info", property(old_info))
    async with running_engine(MODEL, split_evenly(12, 2), **EMULATED) as engine:
        with pytest.raises(InvalidArgumentError, match="does not tell the log-prob") as caught:
            await engine.submit(spec)
        assert caught.value.field == "prompt_logprobs"
        assert len(await generate(engine, [1, 2, 3], 4)) == 4
    monkeypatch.undo()
    async with running_engine(MODEL, split_evenly(12, 2), **EMULATED) as engine:
        [_, told, *_] = [event async for event in await engine.submit(spec)]
    assert isinstance(told, PromptLogprobs)
    assert [len(one.top) for one in told] == [2, 2]


async def test_embeddings_depend_on_the_prompt_alone() -> None:
    """However it is cut, and whatever a slot held before."""
    mean = EmbeddingParams(pooling=Pooling.MEAN)
    prompts = [tuple(range(3, 3 + length)) for length in (1, 40, 90)]
    found: list[list[float]] = []
    for num_stages, chunk in ((1, 512), (3, 7)):
        async with running_engine(
            MODEL, split_evenly(12, num_stages), max_num_batched_tokens=chunk, **EMULATED
        ) as engine:
            found.append([])
            for params in (mean, EmbeddingParams(), mean):
                for prompt in prompts:
                    found[-1] += await embed(engine, prompt, params)
    assert found[0] == found[1]
    means = [tuple(found[0][i : i + HIDDEN_SIZE]) for i in range(0, 3 * HIDDEN_SIZE, HIDDEN_SIZE)]
    assert len(set(means)) == 3


async def test_embeddings_are_refused_by_a_last_stage_that_does_not_know_hidden_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def old_info(engine: EmulatedEngine) -> StageInfo:
        return replace(engine._info, answers_hidden_sums=False)

    monkeypatch.setattr(EmulatedEngine, "info", property(old_info))
    async with running_engine(MODEL, split_evenly(12, 2), **EMULATED) as engine:
        with pytest.raises(InvalidArgumentError, match="last stage is of a version"):
            await embed(engine, (1, 2, 3), EmbeddingParams())
        assert len(await generate(engine, [1, 2, 3], 4)) == 4


async def embed(engine: Engine, prompt: tuple[int, ...], params: EmbeddingParams) -> list[float]:
    spec = RequestSpec(prompt=TokenPrompt(token_ids=prompt), max_tokens=0, embedding=params)
    *_, end = [event async for event in await engine.submit(spec)]
    assert isinstance(end, Finished)
    assert end.embedding is not None
    return list(end.embedding)


async def test_a_configuration_is_enough_of_a_model(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    for weights in path.glob("*.safetensors"):
        weights.unlink()
    async with running_engine(path, split_evenly(6, 2), **EMULATED) as engine:
        assert len(await generate(engine, [1, 2, 3], 5)) == 5


def test_a_stage_that_would_not_fit_the_card_is_refused_with_numbers() -> None:
    config = create_config(
        LayerRange(0, 40), model="shape:llama-2-13b", emulate="rtx-3060-12gb", kv_memory_bytes=None
    )
    with pytest.raises(InsufficientMemoryError, match="26031728640 bytes of weights"):
        build_engine(config, open_model(config.model))


@pytest.mark.parametrize(("threads", "expected"), [(None, 1), (3, 3)])
def test_an_emulated_stage_has_the_threads_it_was_told(threads: int | None, expected: int) -> None:
    """By default the one that it needs; several of torch's wait for each other at its one row."""
    num_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        config = create_config(threads=threads)
        build_engine(config, open_model(config.model))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(num_before)


def test_an_engine_that_computes_refuses_a_shape_by_name() -> None:
    config = StageConfig(model=MODEL, layers=MIDDLE, device="cpu")
    with pytest.raises(UnsupportedModelError, match="shape:llama-160m is a shape without weights"):
        build_engine(config, open_model(config.model))


async def test_kv_in_8_bits_has_room_for_more_tokens() -> None:
    async with emulated_stage(kv_dtype="int8") as (codes, _), emulated_stage() as (plain, _):
        about_codes, about_plain = await codes.info(), await plain.info()
    assert (about_codes.kv_dtype, about_plain.kv_dtype) == ("int8", "float16")
    assert about_codes.num_kv_blocks > about_plain.num_kv_blocks


@pytest.mark.parametrize(("weights", "bytes_of_32"), [("int4", 20), ("int8", 36)])
async def test_weights_in_few_bits_take_less_memory(weights: str, bytes_of_32: int) -> None:
    async with emulated_stage(weights=weights) as (few, _), emulated_stage() as (plain, _):
        about_few, about_plain = await few.info(), await plain.info()
    matrices = about_plain.weight_bytes - about_few.weight_bytes
    assert matrices == pytest.approx(about_plain.weight_bytes * (1 - bytes_of_32 / 64), rel=0.001)
    assert about_few.weights_encoding.name == weights
    assert about_few.compute_dtype == "float16"
