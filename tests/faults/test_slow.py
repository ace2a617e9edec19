"""F36: links and processes that are slow, and stand still for a while, but are not dead."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagecoach import Client
from tests.contract.echo_engine import EchoEngine
from tests.contract.test_generation_client import BackgroundServer
from tests.faults.cluster import Stage
from tests.faults.fault_proxy import BLACKHOLE, Network
from tests.faults.oracle import RECOVERY_S, STEP_DEADLINE_S, Oracle
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

SLOW = Network(delay_s=0.05, bytes_per_s=32_000)
"""As much slower than this model's hidden states are smaller than those of 13B, about 2 Mbit/s."""
LONG_PROMPT_TOKENS = 380
NUM_LONG = 4
UPLOAD_S = 9.0
"""What their hidden states take through a slow link, one way."""
OUTAGE_S = 3.0
COORDINATOR_STOPS_S = 20.0
SLOW_RECOVERY_S = 120.0
STARVED_RECOVERY_S = 200.0
BUSY = "while True: pass"
NUM_BUSY = 2
LOOP_STANDS_STILL_S = 35.0
"""Longer than gRPC by itself lets a call wait for the event loop."""
NUM_CALLERS = 8
STARVED_S = 25.0
"""Longer than an idle link may be silent."""


def num_losses(oracle: Oracle) -> int:
    return oracle.cluster.coordinator.log.count("stage lost")


@contextmanager
def starved(stages: list[Stage]) -> Iterator[None]:
    """Leaves stages the twentieth of a core that busy loops of higher priority leave."""
    core = {min(os.sched_getaffinity(0))}
    for stage in stages:
        stage.is_unusual = True  # its priority cannot be raised again by everyone
        for task in Path(f"/proc/{stage.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), core)
            os.setpriority(os.PRIO_PROCESS, int(task.name), 10)
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(NUM_BUSY)]
    try:
        for loop in loops:
            os.sched_setaffinity(loop.pid, core)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start_long(oracle: Oracle, num_tokens: int = 8) -> Traffic:
    """Long prompts, whose hidden states go through the links in few large messages."""
    return Traffic.start(
        oracle.client,
        oracle.texts[-NUM_LONG:],
        num_tokens=num_tokens,
        num_prompt_tokens=lambda _: LONG_PROMPT_TOKENS,
    )


async def test_f36_a_prompt_that_takes_long_through_a_slow_link_is_served(oracle: Oracle) -> None:
    """Pings waited behind the upload: the stage was lost three times, and the request failed."""
    num_before = num_losses(oracle)
    oracle.cluster.proxies[1].become(SLOW)
    traffic = start_long(oracle)
    await traffic.ended(SLOW_RECOVERY_S)
    oracle.cluster.restore()
    oracle.check_streams(traffic)
    assert num_losses(oracle) == num_before


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f36_a_slow_link_with_outages_of_seconds_is_not_lost(oracle: Oracle) -> None:
    num_before = num_losses(oracle)
    proxy = oracle.cluster.proxies[1]
    proxy.become(SLOW)
    traffic = start_long(oracle)
    for _ in range(3):
        await asyncio.sleep(OUTAGE_S)
        proxy.become(BLACKHOLE)
        await asyncio.sleep(OUTAGE_S)
        proxy.become(SLOW)
    await traffic.ended(SLOW_RECOVERY_S)
    oracle.cluster.restore()
    oracle.check_streams(traffic)
    assert num_losses(oracle) == num_before


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f36_clients_that_leave_during_a_slow_upload_cost_the_others_nothing(
    oracle: Oracle,
) -> None:
    num_before = num_losses(oracle)
    oracle.cluster.proxies[1].become(SLOW)
    leaving = start_long(oracle)
    await asyncio.sleep(UPLOAD_S / 3)
    staying = Traffic.start(oracle.client, oracle.texts[:2], num_tokens=8)
    leaving.leave()
    await leaving.ended(1.0)
    await staying.ended(SLOW_RECOVERY_S)
    oracle.cluster.restore()
    oracle.check_streams(staying)
    assert num_losses(oracle) == num_before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dies", ["machine", "process"])
async def test_f36_a_stage_that_dies_during_a_slow_upload_is_given_up(
    oracle: Oracle, dies: str
) -> None:
    cluster = oracle.cluster
    cluster.proxies[1].become(SLOW)
    traffic = start_long(oracle)
    await asyncio.sleep(UPLOAD_S / 3)
    if dies == "machine":
        cluster.proxies[1].become(BLACKHOLE)
    else:
        cluster.stages[1].process.signal(signal.SIGSTOP)
    await oracle.not_ready_within(STEP_DEADLINE_S)
    cluster.restore()
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f36_a_coordinator_that_was_stopped_goes_on_where_it_was(oracle: Oracle) -> None:
    num_before = num_losses(oracle)
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    coordinator = oracle.cluster.coordinator
    coordinator.signal(signal.SIGSTOP)
    await asyncio.sleep(COORDINATOR_STOPS_S)
    coordinator.signal(signal.SIGCONT)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert num_losses(oracle) == num_before
    await eventually(oracle.is_ready, within_s=5, what="ready")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f36_stages_on_a_starved_box_are_not_lost(oracle: Oracle) -> None:
    num_before = num_losses(oracle)
    with starved(oracle.cluster.stages):
        await asyncio.sleep(STARVED_S)
        traffic = Traffic.start(oracle.client, oracle.texts[:4], num_tokens=8)
        await traffic.ended(STARVED_RECOVERY_S)
        assert num_losses(oracle) == num_before
    oracle.check_streams(traffic)
    oracle.cluster.restore()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("index", [0, 1, 2])
async def test_f36_a_stage_that_stands_still_for_two_seconds_is_not_lost(
    oracle: Oracle, index: int
) -> None:
    num_before = num_losses(oracle)
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    process = oracle.cluster.stages[index].process
    process.signal(signal.SIGSTOP)
    await asyncio.sleep(2.0)
    process.signal(signal.SIGCONT)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert num_losses(oracle) == num_before


@pytest.mark.slow
def test_calls_wait_for_an_event_loop_that_stands_still() -> None:
    with BackgroundServer(EchoEngine()) as server, Client(server.address) as client:
        client.complete("abc", max_tokens=2)  # connected
        server.stand_still(LOOP_STANDS_STILL_S)
        with ThreadPoolExecutor(NUM_CALLERS) as callers:
            calls = [
                callers.submit(client.complete, "abc", max_tokens=2) for _ in range(NUM_CALLERS)
            ]
            assert [call.result().finish_reason for call in calls] == ["length"] * NUM_CALLERS
