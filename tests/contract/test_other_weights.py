"""F37: boxes that hold other weights of the same shape do not become a pipeline."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.engine.engine import Engine
from stagecoach.contract.address import Address
from stagecoach.contract.errors import IncompatibleError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.model_files.hf_files import HfFiles
from tests.clusters import generate, running_stage, status_when
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_gguf, tiny_model
from tests.unit.test_weight_digest import other_weights

HALVES = split_evenly(6, 2)
PROMPT = (5, 6, 7, 8)
DEADLINE_S = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model("llama", tmp_path / "model")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return other_weights(tmp_path / "other")


@asynccontextmanager
async def cluster(
    model: Path, stages: Sequence[Sequence[tuple[Path, LayerRange]]]
) -> AsyncIterator[Engine]:
    """An engine over stage servers, each with files of its own; for each stage, its servers."""
    async with AsyncExitStack() as stack:
        addresses = [
            [await stack.enter_async_context(running_stage(*server)) for server in servers]
            for servers in stages
        ]
        config = ClusterConfig(model=str(model), stages=parse_stages(map(",".join, addresses)))
        engine = await open_engine(config, open_model(str(model)))
        try:
            yield engine
        finally:
            await engine.close(grace_s=0.0)


async def refusal(model: Path, *stages: Sequence[tuple[Path, LayerRange]]) -> str:
    with pytest.raises(IncompatibleError) as caught:
        async with cluster(model, stages):
            pass
    return caught.value.message


async def test_stages_of_two_models_are_refused_by_name(model: Path, other: Path) -> None:
    message = await refusal(model, [(model, HALVES[0])], [(other, HALVES[1])])
    assert "(layers 3:6) and stage" in message
    assert "hold other weights of one shape" in message
    assert "differ in embedding, head, norm, layers 0:6" in message


async def test_servers_of_one_stage_that_hold_two_models_are_refused(
    model: Path, other: Path
) -> None:
    message = await refusal(model, [(model, HALVES[0])], [(model, HALVES[1]), (other, HALVES[1])])
    assert "hold other weights of one shape" in message


def two_gguf_files(folder: Path) -> tuple[Path, Path]:
    """Two of one shape; their ends differ."""
    model, other = tiny_gguf("llama", folder), folder / "other.gguf"
    other.write_bytes(model.read_bytes()[:-5000] + bytes(5000))
    return model, other


async def test_gguf_files_of_two_models_are_refused(tmp_path: Path) -> None:
    model, other = two_gguf_files(tmp_path)
    message = await refusal(model, [(model, HALVES[0])], [(other, HALVES[1])])
    assert "hold other weights of one shape" in message


async def test_a_coordinator_with_other_weights_is_refused(model: Path, other: Path) -> None:
    message = await refusal(other, [(model, HALVES[0])], [(model, HALVES[1])])
    assert "whose weights differ in embedding, head, norm, layers 0:6 from those of" in message


async def test_one_model_in_several_layouts_is_one_model(model: Path, tmp_path: Path) -> None:
    sharded = tiny_model("llama", tmp_path / "sharded", max_shard_size="20KB")
    async with cluster(model, [[(model, HALVES[0])], [(model, HALVES[1])]]) as engine:
        expected = await generate(engine, PROMPT, 8)
    async with cluster(model, [[(sharded, HALVES[0])], [(model, HALVES[1])]]) as engine:
        assert await generate(engine, PROMPT, 8) == expected


def only_layers(path: Path, layers: LayerRange) -> Path:
    """Removes the shards that a stage of these layers does not need."""
    weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {
        shard
        for name, shard in weight_map.items()
        if (
            int(name.split(".")[2]) in layers
            if ".layers." in name
            else (layers.start == 0 if "embed" in name else layers.end == 6)
        )
    }
    for shard in set(weight_map.values()) - needed:
        (path / shard).unlink()
    return path


async def test_boxes_may_hold_the_files_of_their_own_layers_alone(tmp_path: Path) -> None:
    boxes = [
        only_layers(tiny_model("llama", tmp_path / str(layers), max_shard_size="20KB"), layers)
        for layers in HALVES
    ]
    index = tmp_path / "coordinator"
    shutil.copytree(boxes[0], index, ignore=shutil.ignore_patterns("*.safetensors"))
    stages = [[(box, layers)] for box, layers in zip(boxes, HALVES, strict=True)]
    async with cluster(index, stages) as engine:
        assert len(await generate(engine, PROMPT, 8)) == 8


async def test_a_stage_that_comes_back_with_other_weights_is_refused(
    model: Path, other: Path
) -> None:
    async with AsyncExitStack() as stack:
        last = await stack.enter_async_context(running_stage(model, HALVES[1]))
        async with running_stage(model, HALVES[0]) as first:
            config = ClusterConfig(model=str(model), stages=parse_stages([first, last]))
            engine = await open_engine(config, open_model(str(model)))
            stack.push_async_callback(engine.close, grace_s=0.0)
            assert len(await generate(engine, PROMPT, 4)) == 4
        listen = Address.parse(first, field="listen")
        async with running_stage(other, HALVES[0], listen=listen):
            told = "came back with other weights.*differ in embedding, head, norm, layers 0:6"
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(UnavailableError, match=told):
                    await generate(engine, PROMPT, 4)
        async with running_stage(model, HALVES[0], listen=listen):
            async with asyncio.timeout(DEADLINE_S):
                await status_when(engine, lambda status: status.ready)
            assert len(await generate(engine, PROMPT, 4)) == 4


async def test_stages_that_do_not_say_are_taken_with_one_warning(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(HfFiles, "weight_digests", lambda _: {})
    async with cluster(model, [[(model, HALVES[0])], [(model, HALVES[1])]]) as engine:
        assert len(await generate(engine, PROMPT, 4)) == 4
    lines = [one for one in caplog.records if "do not say which weights" in one.message]
    assert len(lines) == 1
