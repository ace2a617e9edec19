"""F1 to F5: processes that die, freeze, and come back."""

import asyncio
import signal
import time

import pytest

from protos.errors import UnavailableError
from tests.faults.oracle import Oracle, stage_info
from tests.faults.traffic import Traffic

DEATH_SEEN_S = 1.0
RECOVERY_S = 60.0


async def test_f1_a_stage_killed_while_idle_is_seen_waited_for_and_used_again(
    oracle: Oracle,
) -> None:
    stage = oracle.cluster.stages[1]
    stage.process.kill()
    await oracle.not_ready_within(DEATH_SEEN_S)
    traffic = Traffic.start(oracle.client, oracle.texts[:2])
    await asyncio.to_thread(stage.restart)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.parametrize(
    "victims", [(1,), pytest.param((0,), marks=pytest.mark.slow_fault), (0, 2)]
)
async def test_f2_f3_streams_go_on_exactly_when_stages_are_killed_while_they_decode(
    oracle: Oracle, victims: tuple[int, ...]
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    for index in victims:
        oracle.cluster.stages[index].process.kill()
    await oracle.not_ready_within(DEATH_SEEN_S)
    await asyncio.to_thread(oracle.cluster.restart_stages, *victims)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
