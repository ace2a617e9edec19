"""An engine that is given a policy serves real requests in its order."""

import asyncio
from pathlib import Path

import pytest

from coordinator.scheduler.policy import Policy
from tests.clusters import generate, running_engine, status_when
from tests.layer_ranges import split_evenly
from tests.schedulers import ShortestFirst
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("policy", "order"),
    [(None, ["first", "long", "short"]), (ShortestFirst(), ["first", "short", "long"])],
)
async def test_requests_that_wait_are_served_in_the_order_of_the_policy(
    model: Path, policy: Policy | None, order: list[str]
) -> None:
    ended: list[str] = []
    one_at_a_time = {"max_num_seqs": 1}
    async with running_engine(
        model, split_evenly(6, 1), coordinator=one_at_a_time, policy=policy
    ) as engine:

        async def run(name: str, num_prompt_tokens: int, num_tokens: int) -> None:
            await generate(engine, range(3, 3 + num_prompt_tokens), num_tokens)
            ended.append(name)

        first = asyncio.create_task(run("first", 5, 200))
        await status_when(engine, lambda now: now.num_running == 1)
        long = asyncio.create_task(run("long", 30, 1))
        await status_when(engine, lambda now: now.num_waiting == 1)
        short = asyncio.create_task(run("short", 4, 1))
        await status_when(engine, lambda now: now.num_waiting == 2)
        await asyncio.gather(first, long, short)
    assert ended == order
