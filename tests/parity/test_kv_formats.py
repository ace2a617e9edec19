"""KV in fewer bits: a cluster that keeps it generates what one stage, or an idle cluster, does.

Real stage servers on sockets; tiny random models on the CPU. What a request generates alone, on
one stage, without the prefix cache, is the slow twin.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.address import Address
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.families import FAMILIES as SERVED
from tests.clusters import (
    assert_nothing_held,
    generate,
    running_engine,
    running_stage,
    status_when,
)
from tests.layer_ranges import split_evenly
from tests.tiny_models import NUM_LAYERS, tiny_model

WHOLE = [LayerRange(0, NUM_LAYERS)]
THREE_STAGES = split_evenly(NUM_LAYERS, 3)
NARROW = ["int8", "float16"]
BLOCK = 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-gqa-tied", tmp_path_factory.mktemp("llama"))


def create_prompts(*lengths: int, num_shared: int = 0) -> list[list[int]]:
    draw = random.Random(3)
    shared = [draw.randrange(3, 128) for _ in range(num_shared)]
    return [[*shared, *(draw.randrange(3, 128) for _ in range(length))] for length in lengths]


async def alone(
    model: Path, prompts: Sequence[Sequence[int]], num_tokens: int, kv_dtype: str
) -> list[list[int]]:
    async with running_engine(
        model, WHOLE, coordinator={"prefix_cache": False}, kv_dtype=kv_dtype
    ) as engine:
        return [await generate(engine, prompt, num_tokens) for prompt in prompts]


@pytest.mark.parametrize("kv_dtype", NARROW)
@pytest.mark.parametrize("family", ["llama-gqa-tied", "gemma2", "mistral-window"])
async def test_split_equals_whole(family: str, kv_dtype: str, tmp_path: Path) -> None:
    """Prompts come in one chunk and in several, sequences end inside a block and at its end."""
    model = tiny_model(family, tmp_path)
    prompts = create_prompts(5, BLOCK, 50)
    expected = await alone(model, prompts, 40, kv_dtype)
    assert len({token for tokens in expected for token in tokens}) > 5
    limits = {"max_num_batched_tokens": 24}
    for num_stages in (2, 3, 5):
        async with running_engine(
            model, split_evenly(NUM_LAYERS, num_stages), coordinator=limits, kv_dtype=kv_dtype
        ) as engine:
            found = await asyncio.gather(*(generate(engine, prompt, 40) for prompt in prompts))
        assert found == expected


async def test_kv_in_8_bits_is_not_that_of_the_arithmetic(llama: Path) -> None:
    """Guards the others: what is kept is seen in what is generated, sooner or later."""
    prompts = create_prompts(20, 30, 40)
    assert await alone(llama, prompts, 200, "int8") != await alone(llama, prompts, 200, "auto")


@pytest.mark.parametrize("kv_dtype", NARROW)
async def test_under_pressure_all_generate_what_they_would_alone(
    llama: Path, kv_dtype: str
) -> None:
    """Prefixes are shared and evicted, blocks are copied, requests are preempted."""
    prompts = [*create_prompts(3, 4, 20, 21, num_shared=3 * BLOCK + 5), *create_prompts(1, 30, 2)]
    expected = await alone(llama, prompts, 30, kv_dtype)
    limits = {"max_num_batched_tokens": 24, "max_num_seqs": 4}
    kv_memory = 28 << 10 if kv_dtype == "int8" else 40 << 10
    async with running_engine(
        llama,
        THREE_STAGES,
        coordinator=limits,
        kv_memory_bytes=kv_memory,
        max_num_seqs=5,
        kv_dtype=kv_dtype,
    ) as engine:
        assert 8 <= (await engine.status()).num_kv_blocks <= 16
        for _ in range(2):
            found = await asyncio.gather(*(generate(engine, prompt, 30) for prompt in prompts))
            assert found == expected
        status = await engine.status()
    assert status.num_preemptions > 0
    assert status.num_prefix_hit_tokens > 0


async def test_requests_survive_the_loss_of_a_stage(llama: Path) -> None:
    prompts = create_prompts(3, 40, 7)
    expected = await alone(llama, prompts, 60, "int8")
    async with AsyncExitStack() as rest:
        victim = AsyncExitStack()
        addresses = [
            await (victim if layers is THREE_STAGES[1] else rest).enter_async_context(
                running_stage(llama, layers, kv_dtype="int8")
            )
            for layers in THREE_STAGES
        ]
        config = ClusterConfig(model=str(llama), stages=parse_stages(addresses))
        engine = await open_engine(config, open_model(config.model))
        rest.push_async_callback(engine.close, 0.0)
        running = [asyncio.create_task(generate(engine, prompt, 60)) for prompt in prompts]
        await status_when(engine, lambda now: now.num_generated_tokens >= 30)
        await victim.aclose()
        listen = Address.parse(addresses[1], field="listen")
        again = running_stage(llama, THREE_STAGES[1], kv_dtype="int8", listen=listen)
        await rest.enter_async_context(again)
        assert await asyncio.gather(*running) == expected
        await assert_nothing_held(engine)


OVERFLOWING = [name for name, family in SERVED.items() if family.overflows_in_float16]
MIDDLE = LayerRange(2, 4)


def middle_stage(path: Path, kv_format: KvFormat) -> TorchEngine:
    """A stage in bfloat16."""
    files = open_model(str(path))
    precision = Precision.uniform(DType.BFLOAT16)._replace(kv=kv_format)
    stack = load_layer_stack(files, MIDDLE, precision=precision, device=torch.device("cpu"))
    return TorchEngine(StageConfig(model=str(path), layers=MIDDLE), files, stack)


@pytest.mark.parametrize("kv_format", [KvFormat.FLOAT16, KvFormat.INT8])
@pytest.mark.parametrize("family", OVERFLOWING)
def test_hidden_states_beyond_float16_leave_keys_and_values_within(
    family: str, kv_format: KvFormat, tmp_path: Path
) -> None:
    """Of these families arithmetic in float16 is refused; what layers project is normed before."""
    engine = middle_stage(tiny_model(family, tmp_path), kv_format)
    generator = torch.Generator().manual_seed(0)
    hidden = 1e6 * torch.randn(40, engine.info.hidden_size, generator=generator)
    for first, last in ((0, 33), (33, 39), (39, 40)):
        piece = SequenceSlice(0, first, last - first)
        given = hidden[first:last].bfloat16()
        found = engine.forward(ForwardBatch(slices=(piece,), hidden_states=given)).hidden_states
        assert found is not None
        assert found.isfinite().all()
        assert found.abs().max() > torch.finfo(torch.float16).max
    for index in range(len(MIDDLE)):
        for cache in engine._pool.layer(index):
            kept = cache.rows if cache.scales is None else cache.scales
            assert 0 < kept.abs().max() < 100


async def test_stages_may_keep_it_differently(llama: Path) -> None:
    (prompt,) = create_prompts(30)
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(running_stage(llama, layers, kv_dtype=kv_dtype))
            for layers, kv_dtype in zip(THREE_STAGES, ("int8", "auto", "float16"), strict=True)
        ]
        config = ClusterConfig(model=str(llama), stages=parse_stages(addresses))
        engine = await open_engine(config, open_model(config.model))
        stack.push_async_callback(engine.close, 0.0)
        assert len(await generate(engine, prompt, 20)) == 20
        status = await engine.status()
        found = [stage.info.precision.kv for stage in status.stages if stage.info is not None]
    assert found == ["int8", "float32", "float16"]
