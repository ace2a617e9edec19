"""F15 to F23: networks that hold back, cut, slow down and lie, and strangers on the same stages."""

import asyncio
import time

import pytest

from stagecoach.contract.errors import UnavailableError
from tests.faults.fault_proxy import BLACKHOLE, HEALTHY, Network, Way
from tests.faults.oracle import KEEPALIVE_BOUND_S, RECOVERY_S, STEP_DEADLINE_S, Oracle
from tests.faults.server_processes import STOP_TIMEOUT_S, ServerProcess
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

DEAD_PROXY = "http://127.0.0.1:1"
FLAP_S = 2.0
NUM_FLAPS = 4


async def test_f15_an_idle_stage_behind_a_blackhole_is_lost_by_keepalive(oracle: Oracle) -> None:
    proxy = oracle.cluster.proxies[1]
    proxy.become(BLACKHOLE)
    await oracle.not_ready_within(KEEPALIVE_BOUND_S)
    proxy.heal()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(BLACKHOLE, id="f15-blackhole"),
        pytest.param(Network(holds=frozenset({Way.DOWN})), id="f16-answers-lost"),
        pytest.param(Network(holds=frozenset({Way.UP})), id="f16-questions-lost"),
    ],
)
async def test_f15_f16_a_busy_stage_that_is_cut_off_is_given_up_and_its_late_replies_refused(
    oracle: Oracle, network: Network
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    proxy = oracle.cluster.proxies[1]
    proxy.become(network)
    await oracle.not_ready_within(STEP_DEADLINE_S)
    proxy.heal()  # what was held back arrives now
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f15_a_server_that_vanished_without_a_word_is_given_up(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    proxy = oracle.cluster.proxies[1]
    proxy.half_open()
    await oracle.not_ready_within(STEP_DEADLINE_S)
    proxy.heal()
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.parametrize(
    ("index", "way"), [(0, Way.DOWN), pytest.param(1, Way.UP, marks=pytest.mark.slow)]
)
async def test_f17_a_reset_in_the_middle_of_a_frame_costs_no_token(
    oracle: Oracle, index: int, way: Way
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    proxy = oracle.cluster.proxies[index]
    num_before = proxy.num_accepted
    proxy.reset_after(1000, way)  # a micro-batch of 8 rows has 1 536 bytes of hidden states
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert proxy.num_accepted > num_before


@pytest.mark.slow
async def test_f17_a_frame_whose_header_is_corrupt_costs_no_token(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    proxy = oracle.cluster.proxies[1]
    num_before = proxy.num_accepted
    proxy.corrupt_after(0, Way.DOWN)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert proxy.num_accepted > num_before


async def test_f18_a_slow_link_makes_streams_slower_and_nothing_fail(oracle: Oracle) -> None:
    proxy = oracle.cluster.proxies[1]
    num_before = proxy.num_accepted
    num_tokens = 8
    proxy.become(Network(delay_s=0.2, bytes_per_s=1e6))
    started_s = time.monotonic()
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=num_tokens)
    await traffic.ended(RECOVERY_S)
    assert time.monotonic() - started_s > num_tokens * 0.4
    proxy.heal()
    oracle.check_streams(traffic)
    assert proxy.num_accepted == num_before
    assert await oracle.is_ready()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f19_a_flapping_link_is_neither_stormed_nor_leaks(oracle: Oracle) -> None:
    proxy = oracle.cluster.proxies[1]
    num_before = proxy.num_accepted
    traffic = Traffic.start(oracle.client, oracle.texts[:4])
    for _ in range(NUM_FLAPS):
        proxy.cut()
        await asyncio.sleep(FLAP_S)
        proxy.become(HEALTHY)
        await asyncio.sleep(FLAP_S)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
    num_attempts = proxy.num_accepted - num_before
    assert num_attempts < NUM_FLAPS * 30, "reconnection does not back off"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--layers", "1:4"), "came back with layers 1:4, expected 2:4"),
        (
            ("--dtype", "bfloat16"),
            "came back with precision bfloat16, expected float32",
        ),
        (("--model", "demo", "--layers", "2:4"), "came back with fingerprint"),
    ],
)
@pytest.mark.slow
async def test_f20_a_stage_that_comes_back_as_another_is_refused_by_name(
    oracle: Oracle, flags: tuple[str, ...], told: str
) -> None:
    stage = oracle.cluster.stages[1]
    stage.process.kill()
    await oracle.not_ready_within(1.0)
    traffic = Traffic.start(oracle.client, oracle.texts[:2])
    await asyncio.to_thread(stage.restart, *flags)
    await traffic.ended(10)
    oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
    assert [told in error.message for error in traffic.errors] == [True, True], traffic.errors
    assert not await oracle.is_ready()
    oracle.cluster.restore()


async def test_f21_a_second_coordinator_is_refused_and_disturbs_nobody(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=300)
    await traffic.until_each_has(5)
    with oracle.cluster.start_coordinator(listen="127.0.0.1:0") as second:
        assert await asyncio.to_thread(second.wait, STOP_TIMEOUT_S) == 1
        assert "is held by coordinator" in second.log.splitlines()[-1]
        assert "Traceback" not in second.log
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.slow
async def test_f22_a_second_stage_on_a_port_fails_to_bind(oracle: Oracle) -> None:
    stage = oracle.cluster.stages[0]
    arguments = ["--model", str(stage.model), "--layers", "0:2", "--listen", stage.address]
    folder = stage.process.log_path.parent
    with ServerProcess("stage_server", arguments, folder=folder) as second:
        assert await asyncio.to_thread(second.wait, STOP_TIMEOUT_S) == 1
        assert f"cannot listen on {stage.address}" in second.log.splitlines()[-1]
        assert "Traceback" not in second.log


@pytest.mark.slow
async def test_f23_a_proxy_of_the_environment_is_ignored_between_stages(oracle: Oracle) -> None:
    environment = dict.fromkeys(
        ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD_PROXY
    )
    await asyncio.to_thread(oracle.cluster.restart_coordinator, environment=environment)
    await oracle.client.wait_until_ready(RECOVERY_S)
    traffic = Traffic.start(oracle.client, oracle.texts[:2])
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    stages = (await oracle.client.status()).stages
    assert [stage.address for stage in stages] == [
        proxy.address for proxy in oracle.cluster.proxies
    ]
    await eventually(oracle.is_ready, within_s=5, what="ready")
