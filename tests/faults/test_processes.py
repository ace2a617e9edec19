"""F1 to F5 and F14: processes that die, freeze, end, and come back."""

import asyncio
import signal

import pytest

from stagecoach.contract.errors import UnavailableError
from tests.faults.oracle import (
    DEATH_SEEN_S,
    RECOVERY_S,
    STEP_DEADLINE_S,
    Oracle,
    check_error,
    stage_info,
)
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually

STAGE_WAIT_S = 1.0


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


@pytest.mark.slow
async def test_f1_requests_wait_a_bounded_time_for_a_stage_that_stays_away(
    oracle: Oracle,
) -> None:
    wait = ("--stage-wait-s", str(STAGE_WAIT_S))
    await asyncio.to_thread(oracle.cluster.restart_coordinator, *wait)
    await oracle.client.wait_until_ready(RECOVERY_S)
    oracle.cluster.stages[2].process.kill()
    await oracle.not_ready_within(DEATH_SEEN_S)
    for _ in range(2):  # the first waits, the next are refused at once
        traffic = Traffic.start(oracle.client, oracle.texts[:2])
        await traffic.ended(STAGE_WAIT_S + 5)
        oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
        assert len(traffic.errors) == 2
    oracle.cluster.restore()


@pytest.mark.parametrize(
    "victims",
    [
        (0, 2),
        pytest.param((1,), marks=pytest.mark.slow),
        pytest.param((0,), marks=pytest.mark.slow),
        pytest.param((2,), marks=pytest.mark.slow),
    ],
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


@pytest.mark.slow
async def test_f3_a_stage_killed_during_a_prefill_chunk_costs_no_token(oracle: Oracle) -> None:
    chunks = ("--max-num-batched-tokens", "16")
    await asyncio.to_thread(oracle.cluster.restart_coordinator, *chunks)
    await oracle.client.wait_until_ready(RECOVERY_S)
    traffic = Traffic.start(oracle.client, oracle.texts, num_prompt_tokens=lambda _: 250)

    async def prefills() -> bool:
        return (await oracle.client.status()).num_running > 0

    await eventually(prefills, within_s=10, what="a prompt is being computed")
    assert traffic.num_arrived == 0
    oracle.cluster.stages[1].process.kill()
    await asyncio.to_thread(oracle.cluster.restart_stages, 1)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.slow
async def test_f3_a_stage_killed_again_during_the_replay_costs_no_token(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=200)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[1]
    for _ in range(2):
        stage.process.kill()
        await oracle.not_ready_within(DEATH_SEEN_S)
        await asyncio.to_thread(stage.restart)
        await oracle.client.wait_until_ready(RECOVERY_S)  # the replay begins now
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


async def test_f4_stages_free_everything_when_the_coordinator_is_killed_and_take_the_next(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    before = [await stage_info(stage.address) for stage in oracle.cluster.stages]
    assert all(info.num_free_kv_blocks < info.num_kv_blocks for info in before)
    oracle.cluster.coordinator.kill()

    async def all_free() -> bool:
        infos = [await stage_info(stage.address) for stage in oracle.cluster.stages]
        assert [info.pid for info in infos] == [info.pid for info in before]
        return all(info.num_free_kv_blocks == info.num_kv_blocks for info in infos)

    await eventually(all_free, within_s=1.0, what="stages free the dead coordinator's slots")
    await traffic.ended(5)
    oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
    assert len(traffic.errors) == len(traffic.streams)
    await asyncio.to_thread(oracle.cluster.restart_coordinator)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f5_a_frozen_stage_is_given_up_by_deadline_and_its_late_frames_are_refused(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[1]
    stage.process.signal(signal.SIGSTOP)
    await oracle.not_ready_within(STEP_DEADLINE_S)
    stage.process.signal(signal.SIGCONT)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert stage.process.returncode is None


async def test_f14_a_coordinator_that_is_told_to_stop_finishes_its_streams(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    oracle.cluster.coordinator.signal(signal.SIGTERM)

    async def refuses() -> bool:
        try:
            await oracle.client.complete(oracle.texts[0].prompt(9), max_tokens=1, ignore_eos=True)
        except UnavailableError as error:
            check_error(error)
            return True
        return False

    await eventually(refuses, within_s=2, what="admission stops")
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    assert await asyncio.to_thread(oracle.cluster.coordinator.wait, 10) == 0
    oracle.cluster.restore()


@pytest.mark.slow
async def test_f14_what_does_not_finish_within_the_grace_time_ends_typed(oracle: Oracle) -> None:
    await asyncio.to_thread(oracle.cluster.restart_coordinator, "--drain-grace-s", "0.1")
    await oracle.client.wait_until_ready(RECOVERY_S)
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=300)
    await traffic.until_each_has(5)
    oracle.cluster.coordinator.signal(signal.SIGTERM)
    await traffic.ended(5)
    oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
    assert traffic.errors
    assert await asyncio.to_thread(oracle.cluster.coordinator.wait, 10) == 0
    oracle.cluster.restore()


async def test_f14_a_second_sigterm_ends_a_coordinator_at_once(oracle: Oracle) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts, num_tokens=300)
    await traffic.until_each_has(5)
    coordinator = oracle.cluster.coordinator
    coordinator.signal(signal.SIGTERM)
    await eventually(lambda: "draining" in coordinator.log, within_s=2, what="it drains")
    coordinator.signal(signal.SIGTERM)
    assert await asyncio.to_thread(coordinator.wait, 2) == -signal.SIGTERM
    await traffic.ended(5)
    oracle.check_streams(traffic, may_fail_with=(UnavailableError,))
    oracle.cluster.restore()


@pytest.mark.slow
async def test_f14_a_stage_that_is_told_to_stop_exits_well_and_costs_no_token(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[0]
    stage.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(stage.process.wait, 10) == 0
    await asyncio.to_thread(stage.restart)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


async def test_f14_a_stage_that_is_restarted_while_it_drains_says_so_first(
    oracle: Oracle,
) -> None:
    """A restart told the stage to stop again, and so cut off the notice that nobody is to blame."""
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage, process = oracle.cluster.stages[1], oracle.cluster.stages[1].process
    num_seen = len(oracle.cluster.coordinator.log)
    process.signal(signal.SIGTERM)
    await eventually(lambda: "draining" in process.log, within_s=RECOVERY_S, what="it drains")
    await asyncio.to_thread(stage.restart)
    assert process.returncode == 0
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)
    log = oracle.cluster.coordinator.log[num_seen:].splitlines()
    lost = [line for line in log if "stage lost" in line]
    assert lost
    assert all("the stage is draining" in line for line in lost), lost


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f14_a_rolling_restart_of_all_stages_under_load_loses_no_request(
    oracle: Oracle,
) -> None:
    all_traffic = [Traffic.start(oracle.client, oracle.texts, num_tokens=300)]
    for turn, stage in enumerate(oracle.cluster.stages):
        await all_traffic[0].until_each_has(10 + 40 * turn)
        stage.process.signal(signal.SIGTERM)
        all_traffic.append(Traffic.start(oracle.client, oracle.texts[:2]))  # while it is away
        assert await asyncio.to_thread(stage.process.wait, 10) == 0
        await asyncio.to_thread(stage.restart)
        await oracle.client.wait_until_ready(RECOVERY_S)
    for traffic in all_traffic:
        await traffic.ended(RECOVERY_S)
        oracle.check_streams(traffic)
