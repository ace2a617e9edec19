"""Stages may keep numbers in unequal formats, which is said once; servers of one stage may not."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.engine.engine import Engine
from stagecoach.contract.errors import IncompatibleError
from stagecoach.model_files import open_model
from tests.clusters import generate, running_stage
from tests.few_bits import QType, mix
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_gguf

HALVES = split_evenly(6, 2)
PROMPT = (5, 6, 7, 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of two types, as those named M."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    return tiny_gguf("llama", tmp_path, quantization=mix(QType.Q4_0, QType.Q8_0), **sizes)


@asynccontextmanager
async def cluster(model: Path, *stages: Sequence[dict[str, Any]]) -> AsyncIterator[Engine]:
    """An engine over stages; for each, the settings of its servers."""
    async with AsyncExitStack() as stack:
        addresses = [
            [
                await stack.enter_async_context(
                    running_stage(model, layers, **{"dtype": "auto", **settings})
                )
                for settings in servers
            ]
            for layers, servers in zip(HALVES, stages, strict=True)
        ]
        config = ClusterConfig(model=str(model), stages=parse_stages(map(",".join, addresses)))
        engine = await open_engine(config, open_model(str(model)))
        try:
            yield engine
        finally:
            await engine.close(grace_s=0.0)


async def test_stages_of_unequal_formats_serve_with_one_warning(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(model, [{}], [{"weights": "float32", "kv_dtype": "int8"}]) as engine:
        assert len(await generate(engine, PROMPT, 8)) == 8
    (told,) = [one for one in caplog.records if "unequal formats" in one.message]
    assert told.levelname == "WARNING"
    facts = vars(told)
    assert facts["weights"].startswith("int4: 127.0.0.1:")
    assert "; float32: 127.0.0.1:" in facts["weights"]
    assert "; int8: 127.0.0.1:" in facts["kv"]
    assert "arithmetic" not in facts


async def test_stages_of_equal_formats_serve_without_one(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(model, [{}], [{}]) as engine:
        assert len(await generate(engine, PROMPT, 8)) == 8
    assert not [one for one in caplog.records if "unequal formats" in one.message]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weights": "int8"}, "has precision int8 weights, .* expected int4 weights"),
        ({"kv_dtype": "int8"}, "has precision int4 weights, .* int8 KV"),
        ({"weights": "int4"}, r"has weights of .* bits each, expected .*: .* the same --weights"),
    ],
)
async def test_servers_of_one_stage_in_unequal_formats_are_refused(
    model: Path, settings: dict[str, Any], told: str
) -> None:
    """A request that goes on at the other server would go on as another text."""
    with pytest.raises(IncompatibleError, match=told):
        async with cluster(model, [{}], [{}, settings]):
            pass
