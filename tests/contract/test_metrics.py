"""Both kinds of server scraped over HTTP after real requests: they say what was done."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.events import Finished, TokensEvent
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.engine.engine import Engine
from coordinator.observe.metrics import CoordinatorMetrics
from stage_server.core.activity import StageActivity
from stage_server.process.metrics import stage_registry
from stagecoach.contract.address import Address
from stagecoach.contract.cluster_status import StageState
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    InvalidArgumentError,
    UnavailableError,
)
from stagecoach.contract.request_timings import RequestTimings
from stagecoach.model_files import open_model
from stagecoach.telemetry.metrics_port import metrics_port
from tests.clusters import generate, running_stage, status_when
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

RANGES = split_evenly(6, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


class Scrape:
    """The samples of one scrape; those of a coordinator are all of its only model."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items() - {("model", "tiny")})): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._values[f"stagecoach_{name}", frozenset(labels.items())]


@dataclass
class Cluster:
    engine: Engine
    coordinator: str
    """Address of its metrics."""
    stages: list[str]
    """Of each stage's metrics, in order."""
    lost: AsyncExitStack
    """Closing it ends the last stage."""
    last_address: str

    async def scrape(self, address: str | None = None) -> Scrape:
        url = f"http://{address or self.coordinator}/metrics"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=10) as response:
                return str(response.read().decode())

        return Scrape(await asyncio.to_thread(read))


@asynccontextmanager
async def cluster(
    model: Path, kv_memory_bytes: int = 1 << 20, **settings: object
) -> AsyncIterator[Cluster]:
    """Two stages and an engine, all with metrics ports."""
    async with AsyncExitStack() as stack:
        lost = AsyncExitStack()
        addresses, metrics_addresses = [], []
        for layers in RANGES:
            activity = StageActivity()
            owner = lost if layers is RANGES[-1] else stack
            stage = running_stage(model, layers, activity=activity, kv_memory_bytes=kv_memory_bytes)
            addresses.append(await owner.enter_async_context(stage))
            registry = stage_registry(activity, num_lost_log_lines=lambda: 0)
            metrics_addresses.append(stack.enter_context(metrics_port("127.0.0.1", 0, registry)))
        stack.push_async_callback(lost.aclose)
        metrics = CoordinatorMetrics()
        tiny = metrics.add("tiny", model=str(model))
        config = ClusterConfig(model=str(model), stages=parse_stages(addresses), **settings)  # type: ignore[arg-type]
        engine = await open_engine(config, open_model(config.model), observers=(tiny.recorder,))
        stack.push_async_callback(engine.close, 0.0)
        tiny.serve(engine)
        coordinator = stack.enter_context(metrics_port("127.0.0.1", 0, metrics.registry))
        yield Cluster(engine, coordinator, metrics_addresses, lost, addresses[-1])


def spec(prompt: range, max_tokens: int = 8, **fields: object) -> RequestSpec:
    return RequestSpec(
        prompt=TokenPrompt(token_ids=tuple(prompt)),
        max_tokens=max_tokens,
        ignore_eos=True,
        **fields,  # type: ignore[arg-type]
    )


async def abort_after_the_first_token(engine: Engine, request: RequestSpec) -> int:
    """Cancels a request; returns the tokens that it got."""
    stream = await engine.submit(request)
    async for event in stream:
        if isinstance(event, TokensEvent):
            stream.cancel()
        elif isinstance(event, Finished):
            return event.num_completion_tokens
    raise AssertionError("the stream ended without its terminal event")


async def test_the_counts_are_those_of_what_was_done(model: Path) -> None:
    async with cluster(model) as running:
        engine = running.engine
        outputs = [
            await generate(engine, range(3, 3 + length), max_tokens)
            for length, max_tokens in ((5, 4), (40, 6), (7, 9))
        ]
        expected = await generate(engine, range(50, 60), 8)
        end = expected[3]
        stopped = [
            e async for e in await engine.submit(spec(range(50, 60), stop_token_ids=(end,)))
        ][-1]
        assert isinstance(stopped, Finished)
        cached = await generate(engine, range(3, 43), 2)
        num_aborted = await abort_after_the_first_token(engine, spec(range(20, 26), 1000 // 20))
        with pytest.raises(InvalidArgumentError):
            await engine.submit(spec(range(10_000, 10_003)))
        with pytest.raises(ContextLengthExceededError):
            await engine.submit(spec(range(3, 100_003)))
        await engine.wait_idle()
        lengths = [*map(len, outputs), len(expected), len(cached)]
        num_tokens = sum(lengths) + stopped.num_completion_tokens + num_aborted
        prompts = [5, 40, 7, 10, 10, 40, 6]

        seen = await running.scrape()
        assert seen("requests_accepted_total") == 7
        assert seen("request_success_total", finished_reason="length") == 5
        assert seen("request_success_total", finished_reason="stop") == 1
        assert seen("request_success_total", finished_reason="abort") == 1
        assert seen("request_errors_total", error="INTERNAL") == 0
        assert seen("requests_refused_total", error="INVALID_ARGUMENT") == 1
        assert seen("requests_refused_total", error="CONTEXT_LENGTH_EXCEEDED") == 1
        assert seen("generation_tokens_total") == num_tokens
        assert seen("request_generation_tokens_sum") == num_tokens
        assert seen("prompt_tokens_total") == sum(prompts)
        assert seen("prefix_cache_queries_total") == sum(prompts)
        assert seen("prefix_cache_hits_total") == 32
        num_first_tokens = seen("time_to_first_token_seconds_count")
        assert num_first_tokens == 7 - (stopped.num_completion_tokens == 0)
        assert seen("inter_token_latency_seconds_count") == num_tokens - num_first_tokens
        assert seen("e2e_request_latency_seconds_count") == 7
        assert seen("num_requests_running") == seen("num_requests_waiting") == 0
        assert seen("micro_batches_in_flight") == 0
        assert seen("ready") == seen("stage_up", stage="1") == 1

        whole = seen("e2e_request_latency_seconds_sum")
        assert 0 < seen("time_to_first_token_seconds_sum") < whole
        for stage in range(len(RANGES)):
            parts = [
                seen(f"stage_{part}_seconds_sum", stage=str(stage))
                for part in ("queue", "compute", "serialize", "wire")
            ]
            assert all(part > 0 for part in parts)
            assert sum(parts) < whole
            assert 0 < seen("stage_bubble_ratio", stage=str(stage)) < 1
            own = await running.scrape(running.stages[stage])
            check_stage(own, seen, model, stage)


def check_stage(own: Scrape, seen: Scrape, model: Path, stage: int) -> None:
    """What a stage says of itself is what the coordinator saw of it."""
    num_micro_batches = seen("micro_batches_total")
    assert own("stage_server_micro_batches_total") == num_micro_batches
    assert own("stage_server_compute_seconds_count") == num_micro_batches
    assert own("stage_server_compute_seconds_sum") == pytest.approx(
        seen("stage_compute_seconds_sum", stage=str(stage))
    )
    rows = [own("stage_server_tokens_total", kind=kind) for kind in ("prefill", "decode")]
    assert rows == [seen("computed_tokens_total", kind=kind) for kind in ("prefill", "decode")]
    assert own("stage_server_ready") == own("stage_server_streams") == 1
    assert own("stage_server_streams_opened_total") == 1
    assert own("stage_server_model_load_seconds") > 0
    assert own("stage_server_kv_blocks", state="used") == seen("kv_blocks", state="cached")
    assert own("stage_server_kv_slots", state="used") > 0
    assert own("stage_server_weight_bytes") > 0
    about = {
        "layers": str(RANGES[stage]),
        "device": "cpu (1 threads)",
        "dtype": "float32",
        "attention": "gather",
        "max_graph_seqs": "0",
    }
    assert own("stage_server_info", model_name=model.name, **about) == 1


async def test_running_requests_are_seen_while_they_run(model: Path) -> None:
    async with cluster(model, max_num_seqs=1) as running:
        requests = [
            asyncio.create_task(generate(running.engine, range(3, 8), 200)) for _ in range(3)
        ]
        await status_when(running.engine, lambda now: now.num_generated_tokens >= 5)
        seen = await running.scrape()
        assert (seen("num_requests_running"), seen("num_requests_waiting")) == (1, 2)
        assert 0 < seen("kv_cache_usage_perc") <= 1
        assert seen("working_seconds_total") > 0
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)


async def test_a_lost_stage_is_counted_and_what_was_replayed(model: Path) -> None:
    async with cluster(model) as running:
        tasks = [
            asyncio.create_task(generate(running.engine, range(start, start + 6), 60))
            for start in (3, 13)
        ]
        await status_when(running.engine, lambda now: now.num_generated_tokens >= 20)
        await running.lost.aclose()
        await status_when(running.engine, lambda now: now.stages[0].state is StageState.READY)
        seen = await running.scrape()
        assert (seen("stage_losses_total", stage="0"), seen("stage_up", stage="0")) == (0, 1)
        assert (seen("stage_losses_total", stage="1"), seen("stage_up", stage="1")) == (1, 0)
        assert seen("ready") == 0
        listen = Address.parse(running.last_address, field="listen")
        async with running_stage(model, RANGES[-1], listen=listen):
            await asyncio.gather(*tasks)
            seen = await running.scrape()
            assert seen("replays_total") == 2
            assert seen("generation_tokens_total") == 120
            assert seen("request_success_total", finished_reason="length") == 2
            assert seen("ready") == seen("stage_up", stage="1") == 1
            own = await running.scrape(running.stages[0])
            assert own("stage_server_ready") == 1


async def test_status_and_metrics_tell_preemptions_from_replays_alike(model: Path) -> None:
    """Status counted both as preemptions, and only those of requests that had ended."""
    kv_memory_bytes = 60 << 10  # much less than what the requests need together
    async with cluster(model, kv_memory_bytes) as running:

        async def timings(start: int) -> RequestTimings:
            stream = await running.engine.submit(spec(range(start, start + 6), 150))
            events = [event async for event in stream]
            assert isinstance(events[-1], Finished)
            return events[-1].timings

        tasks = [asyncio.create_task(timings(3 + 10 * index)) for index in range(4)]
        await status_when(running.engine, lambda now: now.num_preemptions > 0)
        assert not any(task.done() for task in tasks)
        await running.lost.aclose()
        await status_when(running.engine, lambda now: not now.ready)
        status, seen = await running.engine.status(), await running.scrape()
        assert seen("num_preemptions_total") == status.num_preemptions > 0
        num_replays = seen("replays_total")
        assert num_replays > 0
        listen = Address.parse(running.last_address, field="listen")
        async with running_stage(model, RANGES[-1], listen=listen, kv_memory_bytes=kv_memory_bytes):
            ends = await asyncio.gather(*tasks)
            status, seen = await running.engine.status(), await running.scrape()
            assert seen("num_preemptions_total") == status.num_preemptions
            assert sum(end.num_preemptions for end in ends) == status.num_preemptions
            assert sum(end.num_replays for end in ends) == seen("replays_total") == num_replays


async def test_requests_that_fail_are_counted_by_their_error(model: Path) -> None:
    async with cluster(model, stage_wait_s=0.2) as running:
        task = asyncio.create_task(generate(running.engine, range(3, 8), 200))
        await status_when(running.engine, lambda now: now.num_generated_tokens >= 5)
        await running.lost.aclose()
        with pytest.raises(UnavailableError):
            await task
        with pytest.raises(UnavailableError):
            await running.engine.submit(spec(range(3, 8)))
        seen = await running.scrape()
        assert seen("request_errors_total", error="UNAVAILABLE") == 1
        assert seen("requests_refused_total", error="UNAVAILABLE") == 1
        own = await running.scrape(running.stages[1])
        assert own("stage_server_ready") == own("stage_server_streams") == 0
        assert own("stage_server_stream_errors_total", error="UNAVAILABLE") == 1
