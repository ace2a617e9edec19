"""F6 to F11: forwards that hang, fail, or take the process with them."""

import asyncio
from contextlib import suppress

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagecoach.contract.errors import InternalError, UnavailableError
from tests.faults.cluster import HANG_TIMEOUT_S, Stage
from tests.faults.oracle import RECOVERY_S, STEP_DEADLINE_S, Oracle
from tests.faults.reference import Continuation
from tests.faults.traffic import Traffic
from tests.faults.waiting import eventually
from tests.tiny_models import VOCAB_SIZE

STUCK_EXIT_S = 8 * HANG_TIMEOUT_S
"""Until a stage whose forward never returns ends itself."""


async def is_serving(stage: Stage) -> bool:
    """What a stage's own health says."""
    async with grpc.aio.insecure_channel(stage.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f6_a_stage_whose_forward_hangs_says_so_is_given_up_and_ends_itself(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[1]
    stage.plan_fault("hang")

    async def not_serving() -> bool:
        return stage.process.returncode is not None or not await is_serving(stage)

    await oracle.not_ready_within(STEP_DEADLINE_S)
    await eventually(not_serving, within_s=STEP_DEADLINE_S, what="the watchdog turns health off")
    assert await asyncio.to_thread(stage.process.wait, STUCK_EXIT_S) not in (0, None)
    await asyncio.to_thread(stage.restart)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.parametrize("fault", ["raise", "out-of-memory"])
async def test_f7_f8_a_forward_that_fails_costs_only_its_micro_batch(
    oracle: Oracle, fault: str
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[1]
    stage.plan_fault(fault)
    await eventually(lambda: not stage.has_planned_fault, within_s=10, what="the fault strikes")
    after = Traffic.start(oracle.client, oracle.texts[:3])
    for one in (traffic, after):
        await one.ended(RECOVERY_S)
    oracle.check_streams(traffic, may_fail_with=(InternalError,))
    oracle.check_streams(after)
    if fault == "raise":
        assert traffic.errors
    assert stage.process.returncode is None
    assert await is_serving(stage)


@pytest.mark.slow
async def test_f9_a_stage_whose_device_fails_ends_itself_and_costs_no_token(
    oracle: Oracle,
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    stage = oracle.cluster.stages[1]
    stage.plan_fault("device-error")
    assert await asyncio.to_thread(stage.process.wait, 15) > 0
    await asyncio.to_thread(stage.restart)
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic)


@pytest.mark.parametrize("index", [2, pytest.param(1, marks=pytest.mark.slow)])
async def test_f10_a_row_that_is_not_a_number_costs_its_own_request_alone(
    oracle: Oracle, index: int
) -> None:
    traffic = Traffic.start(oracle.client, oracle.texts)
    await traffic.until_each_has(10)
    oracle.cluster.stages[index].plan_fault("nan-row")
    await traffic.ended(RECOVERY_S)
    oracle.check_streams(traffic, may_fail_with=(InternalError,))
    assert len(traffic.errors) == 1
    for _ in range(2):  # whoever gets the blocks that held it
        again = Traffic.start(oracle.client, oracle.texts)
        await again.ended(RECOVERY_S)
        oracle.check_streams(again)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_f11_a_request_that_kills_its_stage_each_time_fails_and_the_others_recover(
    oracle: Oracle,
) -> None:
    used = {token for text in oracle.texts for token in text.token_ids}
    poison = next(token for token in range(3, VOCAB_SIZE) if token not in used)
    stage = oracle.cluster.stages[0]
    stage.plan_fault("kill", token_id=poison, repeats=True)
    traffic = Traffic.start(oracle.client, oracle.texts[:4], num_tokens=300)
    await traffic.until_each_has(5)
    bad = Continuation(token_ids=(*(poison,) * 8, *oracle.texts[0].token_ids))
    poisoned = Traffic.start(oracle.client, [bad], num_prompt_tokens=lambda _: 8)
    supervisor = asyncio.create_task(_supervise(stage))
    try:
        for one in (poisoned, traffic):
            await one.ended(2 * RECOVERY_S)
    finally:
        stage.forget_fault()
        supervisor.cancel()
        with suppress(asyncio.CancelledError):
            await supervisor
        await asyncio.to_thread(oracle.cluster.restore)
    assert [type(error) for error in poisoned.errors] == [UnavailableError]
    assert poisoned.num_arrived == 0
    oracle.check_streams(traffic)


async def _supervise(stage: Stage) -> None:
    """Starts a stage again whenever it has ended."""
    while True:
        await eventually(lambda: stage.process.returncode is not None, within_s=600, what="it ends")
        await asyncio.shield(asyncio.to_thread(stage.restart))
