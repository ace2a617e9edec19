"""What the engine does when requests are many, cancelled or seeded, over real stages."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import Accepted, Finished, TokensEvent
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import TextPrompt, TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.engine.engine import Engine
from coordinator.pipeline.forward_stream import StageReply
from coordinator.pipeline.stage_link import StageLink
from stagecoach.contract import cluster_status_codec
from stagecoach.contract.cluster_status import CoordinatorStatus
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    IncompatibleError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.v1.stage_pb2 import ForwardRequest
from tests.clusters import assert_nothing_held, generate, running_engine, running_stage, status_when
from tests.contract.engine_requests import PROMPT, create_spec
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

THREE_STAGES = split_evenly(6, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[Engine]:
    async with running_engine(model, THREE_STAGES) as engine:
        yield engine


async def test_events_come_in_order_and_account_for_every_token_and_stage(engine: Engine) -> None:
    accepted, *chunks, finished = [event async for event in await engine.submit(create_spec())]
    assert isinstance(accepted, Accepted)
    assert accepted.num_prompt_tokens == len(PROMPT)
    assert all(isinstance(chunk, TokensEvent) for chunk in chunks)
    assert isinstance(finished, Finished)
    assert finished.finish_reason is FinishReason.LENGTH
    assert finished.num_completion_tokens == 8
    timings = finished.timings
    assert timings.num_steps == 8
    assert timings.time_to_first_token_ns is not None
    assert 0 < timings.time_to_first_token_ns <= timings.total_ns
    assert len(timings.stages) == 3
    inside = sum(
        stage.queue_ns + stage.compute_ns + stage.serialize_ns + stage.wire_ns
        for stage in timings.stages
    )
    own = timings.schedule_ns + timings.sample_ns + timings.detokenize_ns
    assert all(stage.compute_ns > 0 for stage in timings.stages)
    assert 0.5 * timings.step_ns < inside + own <= timings.step_ns
    prefill = timings.prefill
    assert prefill is not None
    assert prefill.num_steps == 1
    assert 0 < prefill.step_ns < timings.step_ns
    for part, whole in zip(prefill.stages, timings.stages, strict=True):
        assert 0 < part.compute_ns < whole.compute_ns


async def test_cancelling_in_prefill_decode_and_queue_frees_every_stage(model: Path) -> None:
    limits = {"max_num_batched_tokens": 4, "max_num_seqs": 2}
    async with running_engine(model, THREE_STAGES, coordinator=limits) as engine:
        decoding = await engine.submit(create_spec(max_tokens=200))
        await status_when(engine, lambda status: status.num_generated_tokens >= 3)
        prefilling = await engine.submit(
            create_spec(prompt=TokenPrompt(token_ids=PROMPT * 60), max_tokens=20)
        )
        waiting = await engine.submit(create_spec(max_tokens=200))
        await status_when(engine, lambda status: status.num_running == 2)
        for stream in (decoding, prefilling, waiting):
            stream.cancel()
            stream.cancel()
            *_, finished = [event async for event in stream]
            assert isinstance(finished, Finished)
            assert finished.finish_reason is FinishReason.ABORT
        await assert_nothing_held(engine)
        assert engine.num_requests == 0
        assert len(await generate(engine, PROMPT, 5)) == 5


async def test_a_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=42)
    alone = await generate(engine, PROMPT, 16, sampling=sampling)
    others = [SamplingParams(temperature=1.3, seed=seed) for seed in range(6)]
    together = await asyncio.gather(
        generate(engine, PROMPT, 16, sampling=sampling),
        *(generate(engine, (9, 8, 7, 6), 12, sampling=other) for other in others),
    )
    assert together[0] == alone
    assert len({tuple(tokens) for tokens in together[1:]}) > 1


async def test_a_stop_token_ends_the_output_and_is_not_part_of_it(engine: Engine) -> None:
    tokens = await generate(engine, PROMPT, 8)
    stop = tokens[4]
    spec = create_spec(stop_token_ids=(stop,))
    *events, finished = [event async for event in await engine.submit(spec)]
    seen = [i for event in events if isinstance(event, TokensEvent) for i in event.token_ids]
    assert seen == tokens[: tokens.index(stop)]
    assert isinstance(finished, Finished)
    assert finished.finish_reason is FinishReason.STOP
    assert finished.num_completion_tokens == len(seen)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": TokenPrompt(token_ids=(1, 128))}, InvalidArgumentError, "128 is outside"),
        ({"prompt": TextPrompt(text="hello")}, InvalidArgumentError, "no tokenizer"),
        ({"stop": ("x",)}, InvalidArgumentError, "no tokenizer"),
        ({"stop_token_ids": (500,)}, InvalidArgumentError, "stop_token_ids: token id 500"),
        (
            {"sampling": SamplingParams(logit_bias={4000: 1.0})},
            InvalidArgumentError,
            "logit_bias: token id 4000",
        ),
        (
            {"prompt": TokenPrompt(token_ids=(1,) * 256), "max_tokens": None},
            ContextLengthExceededError,
            "256 tokens",
        ),
    ],
)
async def test_requests_that_cannot_be_served_are_refused(
    engine: Engine, changes: dict[str, Any], error: type[StagecoachError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await engine.submit(create_spec(**changes))
    assert engine.num_requests == 0


async def test_the_longest_request_that_fits_is_served_to_its_end(engine: Engine) -> None:
    assert len(await generate(engine, PROMPT, 253)) == 253


@pytest.mark.parametrize("max_tokens", [254, 2**32 - 1])
async def test_more_tokens_than_fit_become_as_many_as_fit(engine: Engine, max_tokens: int) -> None:
    events = [event async for event in await engine.submit(create_spec(max_tokens=max_tokens))]
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.LENGTH
    assert end.num_completion_tokens == 253


async def test_more_tokens_than_the_kv_memory_holds_become_as_many_as_it_holds(model: Path) -> None:
    async with running_engine(model, THREE_STAGES, kv_memory_bytes=50_000) as engine:
        limit = (await engine.status()).max_model_len
        assert limit < 256
        assert len(await generate(engine, PROMPT, 10_000)) == limit - len(PROMPT)
        with pytest.raises(ContextLengthExceededError, match=f"{limit} tokens"):
            await engine.submit(create_spec(prompt=TokenPrompt(token_ids=(1,) * limit)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("min_tokens", [0, 1, 5, 8])
async def test_a_request_does_not_end_before_it_has_so_many_tokens(
    engine: Engine, min_tokens: int, temperature: float
) -> None:
    ends = (3, 4, 9)
    sampling = SamplingParams(
        temperature=temperature, seed=1, logit_bias=dict.fromkeys(ends, 100.0)
    )
    spec = create_spec(stop_token_ids=ends, min_tokens=min_tokens, sampling=sampling)
    *events, finished = [event async for event in await engine.submit(spec)]
    seen = [i for event in events if isinstance(event, TokensEvent) for i in event.token_ids]
    assert len(seen) == min_tokens
    assert not set(seen) & set(ends)
    assert isinstance(finished, Finished)
    is_full = min_tokens == 8
    assert finished.finish_reason is (FinishReason.LENGTH if is_full else FinishReason.STOP)


async def test_a_full_queue_refuses_and_the_accepted_finish(model: Path) -> None:
    limits = {"max_num_seqs": 1, "max_num_waiting": 3}
    async with running_engine(model, THREE_STAGES, coordinator=limits) as engine:
        running = asyncio.create_task(generate(engine, PROMPT, 100))
        await status_when(engine, lambda status: status.num_running == 1)
        accepted = [asyncio.create_task(generate(engine, PROMPT, 4)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="3 requests are waiting, the limit is 3"):
            await engine.submit(create_spec())
        assert [len(tokens) for tokens in await asyncio.gather(*accepted)] == [4, 4, 4]
        assert len(await running) == 100


async def test_four_times_more_requests_than_fit_all_finish(model: Path) -> None:
    async with running_engine(model, THREE_STAGES, kv_memory_bytes=96 << 10) as engine:
        status = await engine.status()
        request_tokens = 60
        num_requests = 4 * (status.num_kv_blocks * 16) // request_tokens
        outputs = await asyncio.gather(
            *(generate(engine, PROMPT, request_tokens - len(PROMPT)) for _ in range(num_requests))
        )
    assert num_requests >= 8
    assert {tuple(tokens) for tokens in outputs} == {tuple(outputs[0])}


async def test_micro_batches_reach_every_stage_in_the_order_of_their_ids(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}
    in_flight: list[int] = []
    real_forward = StageLink.forward

    async def forward(link: StageLink, request: ForwardRequest, num_tokens: int) -> StageReply:
        seen.setdefault(link.address, []).append(request.micro_batch.micro_batch_id)
        assert link._stream is not None
        in_flight.append(len(link._stream._pending) + 1)
        return await real_forward(link, request, num_tokens)

    monkeypatch.setattr(StageLink, "forward", forward)
    prompts = [(token, token + 1, token + 2) for token in range(10, 22)]
    async with running_engine(model, THREE_STAGES, coordinator={"num_micro_batches": 4}) as engine:
        together = await asyncio.gather(*(generate(engine, prompt, 20) for prompt in prompts))
        alone = [await generate(engine, prompt, 20) for prompt in prompts]
    assert together == alone
    assert max(in_flight) > 1
    assert len(seen) == 3
    for ids in seen.values():
        assert ids == sorted(ids)


async def test_cancelling_with_several_in_flight_disturbs_no_other(model: Path) -> None:
    async with running_engine(model, THREE_STAGES, coordinator={"num_micro_batches": 3}) as engine:
        expected = await generate(engine, PROMPT, 60)
        kept = [asyncio.create_task(generate(engine, PROMPT, 60)) for _ in range(3)]
        dropped = [await engine.submit(create_spec(max_tokens=200)) for _ in range(3)]
        await status_when(engine, lambda status: status.num_running == 6)
        for stream in dropped:
            stream.cancel()
            *_, finished = [event async for event in stream]
            assert isinstance(finished, Finished)
            assert finished.finish_reason is FinishReason.ABORT
        late = asyncio.create_task(generate(engine, PROMPT, 60))
        assert await asyncio.gather(*kept, late) == [expected] * 4


async def test_an_id_is_in_use_until_its_request_has_ended(engine: Engine) -> None:
    spec = create_spec(request_id="mine", max_tokens=2)
    first = await engine.submit(spec)
    num_refused = 0
    while engine.num_requests:
        with pytest.raises(InvalidArgumentError, match="'mine' is in use"):
            await engine.submit(spec)
        num_refused += 1
        await asyncio.sleep(0)
    assert num_refused > 0
    *_, finished = [event async for event in first]
    assert isinstance(finished, Finished)
    *_, finished = [event async for event in await engine.submit(spec)]
    assert isinstance(finished, Finished)


async def test_an_id_that_was_cancelled_is_in_use_until_its_last_step_is_back(
    engine: Engine,
) -> None:
    """It was taken again while the scheduler still had it, and the books went wrong."""
    spec = create_spec(request_id="mine", max_tokens=200)

    async def is_taken() -> bool:
        try:
            again = await engine.submit(replace(spec, max_tokens=3))
        except InvalidArgumentError:
            return False
        *_, finished = [event async for event in again]
        assert isinstance(finished, Finished)
        assert finished.num_completion_tokens == 3
        return True

    num_refused = 0
    for _ in range(20):
        stream = await engine.submit(spec)
        await status_when(engine, lambda status: status.num_running == 1)
        stream.cancel()
        while not await is_taken():
            num_refused += 1
            await asyncio.sleep(0.001)
    assert num_refused > 0


async def test_an_engine_that_is_closed_before_stages_told_of_the_last_slot_is_idle(
    model: Path,
) -> None:
    """The step that frees the slot is on its way when the last token has come."""
    async with running_engine(model, THREE_STAGES) as engine:
        await generate(engine, PROMPT, 3)
        await engine.close(grace_s=0.0)
        async with asyncio.timeout(5):
            await engine.wait_idle()


async def test_a_coordinator_refuses_stages_of_another_model(model: Path, tmp_path: Path) -> None:

    other = tiny_model("qwen2", tmp_path)
    async with running_stage(model, LayerRange(0, 6)) as address:
        config = ClusterConfig(model=str(other), stages=parse_stages([address]))
        with pytest.raises(IncompatibleError, match=r"the stages serve .* was given"):
            await open_engine(config, open_model(config.model))


async def test_the_state_of_a_cluster_is_the_same_on_both_sides_of_the_wire(model: Path) -> None:
    async with running_engine(model, THREE_STAGES) as engine:
        await generate(engine, PROMPT, 3)
        status = CoordinatorStatus.of([await engine.status()])
        assert 0 < status.tokens_per_second < 1  # 0.3, which a float32 rounds
        assert cluster_status_codec.from_message(cluster_status_codec.to_message(status)) == status


async def test_a_stage_with_room_for_one_block_warms_up_and_serves(model: Path) -> None:
    one_block = 16 * 2 * 4 * 12 * 4 * 6  # tokens, key and value, heads, head size, bytes, layers
    async with running_engine(model, [LayerRange(0, 6)], kv_memory_bytes=one_block) as engine:
        assert (await engine.status()).num_kv_blocks == 1
        assert len(await generate(engine, PROMPT, 5)) == 5


async def test_a_stage_that_never_comes_is_named(model: Path) -> None:

    config = ClusterConfig(
        model=str(model), stages=parse_stages(["127.0.0.1:1"]), connect_timeout_s=0.3
    )
    with pytest.raises(UnavailableError, match=r"stage 127\.0\.0\.1:1"):
        await open_engine(config, open_model(config.model))
