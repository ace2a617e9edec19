"""F24 to F28 and F30, F34, F35: clients that leave or flood, memory that runs out, and long use."""

import asyncio
import random
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import pytest

from stagecoach.client import AsyncClient
from stagecoach.client.request import generate_request
from stagecoach.contract.errors import QueueFullError, UnavailableError
from stagecoach.v1 import generation_pb2_grpc
from tests.faults.cluster import MAX_NUM_SEQS
from tests.faults.oracle import DEATH_SEEN_S, RECOVERY_S, Oracle
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

GONE_S = 2.0
"""Until everything that a client held is free once it has left."""
SOAK_S = 90.0


async def test_f24_what_clients_held_is_free_when_they_leave_in_decode(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=300)
    await traffic.until_each_has(5)
    traffic.leave()
    await oracle.until_balanced(GONE_S)
    num_generated = (await oracle.client.status()).num_generated_tokens
    await asyncio.sleep(0.2)
    assert (await oracle.client.status()).num_generated_tokens == num_generated


@pytest.mark.slow
async def test_f24_what_clients_held_is_free_when_they_leave_in_prefill_or_the_queue(
    oracle: Oracle,
) -> None:
    await asyncio.to_thread(
        oracle.cluster.restart_coordinator,
        *("--max-num-batched-tokens", "8", "--max-num-seqs", "4"),
    )
    await oracle.client.wait_until_ready(RECOVERY_S)
    leaving = Traffic.start(oracle.client, oracle.texts, num_prompt_tokens=lambda _: 300)

    async def some_wait() -> bool:
        status = await oracle.client.status()
        return status.num_running > 0 and status.num_waiting > 0

    await eventually(some_wait, within_s=10, what="some are computed, some wait")
    assert leaving.num_arrived == 0
    leaving.leave()
    await oracle.until_balanced(GONE_S)


async def test_f25_clients_that_stop_reading_cost_the_others_nothing(oracle: Oracle) -> None:
    requests = [
        generate_request(text.prompt(8), max_tokens=300, ignore_eos=True) for text in oracle.texts
    ]
    window = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(oracle.cluster.address, options=window) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        deaf = [stub.Generate(request) for request in requests]
        for call in deaf:
            await call.wait_for_connection()
        traffic = Traffic.start(oracle.client, oracle.texts)
        await traffic.ended(RECOVERY_S)
        oracle.check_streams(traffic)
        await oracle.until_balanced()  # they have ended though nobody reads
        for call in deaf:
            call.cancel()


async def test_f26_a_burst_of_ten_times_the_capacity_is_refused_fast_and_the_accepted_finish(
    oracle: Oracle,
) -> None:
    await asyncio.to_thread(
        oracle.cluster.restart_coordinator, "--max-num-seqs", "4", "--max-num-waiting", "4"
    )
    await oracle.client.wait_until_ready(RECOVERY_S)
    started_s = time.monotonic()
    traffic = Traffic.start(
        oracle.client, oracle.texts * 10, num_prompt_tokens=lambda index: 8 + index
    )

    def rest_refused() -> bool:
        return len(traffic.errors) >= len(traffic.streams) - 8

    await eventually(rest_refused, within_s=5, what="what does not fit is refused")
    assert time.monotonic() - started_s < 5
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic, may_fail_with=(QueueFullError,))
    assert len(traffic.errors) <= len(traffic.streams) - 4


@pytest.mark.slow
async def test_f27_sequences_that_outgrow_the_kv_memory_are_preempted_and_go_on_exactly(
    oracle: Oracle,
) -> None:
    before = (await oracle.client.status()).num_preemptions
    traffic = Traffic.start(
        oracle.client,
        oracle.texts * 2,
        num_tokens=220,
        num_prompt_tokens=lambda index: 20 + 8 * index,
    )
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    status = await oracle.client.status()
    num_wanted = sum(stream.num_prompt_tokens + stream.num_tokens for stream in traffic.streams)
    assert num_wanted > 2 * status.num_kv_blocks * status.stages[0].kv_block_size
    assert status.num_preemptions > before


@pytest.mark.slow
async def test_f28_slots_that_are_used_again_and_again_hold_nothing_of_before(
    oracle: Oracle,
) -> None:
    shuffled = random.Random(0)
    for _ in range(6):  # each slot several times, by sequences of every length
        lengths = [shuffled.randrange(8, 200) for _ in range(MAX_NUM_SEQS)]
        left = Traffic.start(
            oracle.client, oracle.texts, num_prompt_tokens=lengths.__getitem__, num_tokens=100
        )
        kept = Traffic.start(
            oracle.client, oracle.texts * 2, num_prompt_tokens=lengths.__getitem__, num_tokens=12
        )
        await kept.ended(RECOVERY_S)
        left.leave()
        oracle.check_streams(kept)


@pytest.mark.slow
async def test_f34_a_full_disk_for_logs_does_not_stop_serving(oracle: Oracle) -> None:
    full = Path("/dev/full")
    await asyncio.to_thread(oracle.cluster.restart_coordinator, log=full)
    await oracle.client.wait_until_ready(RECOVERY_S)
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


async def test_f35_exhausted_descriptors_refuse_newcomers_keep_the_old_and_recover(
    oracle: Oracle,
) -> None:
    coordinator = oracle.cluster.coordinator
    host, _, port = oracle.cluster.address.rpartition(":")
    before = resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE)
    num_fds = coordinator.footprint().num_open_fds
    resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, (num_fds + 4, before[1]))
    try:
        with ExitStack() as stack:
            for _ in range(32):  # the backlog takes what the server does not
                newcomer = socket.create_connection((host, int(port)), timeout=5)
                stack.enter_context(newcomer)
            traffic = Traffic.start(oracle.client, oracle.texts)
            await traffic.ended(RECOVERY_S)
            oracle.check_streams(traffic)
    finally:
        resource.prlimit(coordinator.pid, resource.RLIMIT_NOFILE, before)
    async with AsyncClient(oracle.cluster.address) as newcomer_client:
        await newcomer_client.wait_until_ready(10)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f30_under_load_with_aborts_and_kills_everything_balances(oracle: Oracle) -> None:
    chance = random.Random(1)
    end_s = time.monotonic() + SOAK_S
    next_kill_s = time.monotonic() + SOAK_S / 3
    while time.monotonic() < end_s:
        traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=60)
        for stream in traffic.streams:
            if chance.random() < 0.1:
                asyncio.get_running_loop().call_later(chance.random(), stream.leave)
        if time.monotonic() > next_kill_s:
            next_kill_s += SOAK_S / 3
            victim = chance.randrange(len(oracle.cluster.stages))
            oracle.cluster.stages[victim].process.kill()
            await oracle.not_ready_within(DEATH_SEEN_S)
            await asyncio.to_thread(oracle.cluster.restart_stages, victim)
        await traffic.ended(RECOVERY_S)
        oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
