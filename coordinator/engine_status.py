"""The state of an engine for operators, put together from its parts."""

from dataclasses import dataclass, field

from coordinator.core.status import EngineStatus, StageState, StageStatus
from coordinator.pipeline.pipeline import Pipeline
from coordinator.pipeline.topology import Topology
from coordinator.scheduler.scheduler import Scheduler
from coordinator.throughput import ThroughputMeter


@dataclass(slots=True)
class EngineCounters:
    """What an engine counts from its start on."""

    num_finished: int = 0
    """Requests ended, by any cause."""
    num_preemptions: int = 0
    """Of the requests that have ended."""
    throughput: ThroughputMeter = field(default_factory=ThroughputMeter)


async def stage_statuses(pipeline: Pipeline) -> tuple[StageStatus, ...]:
    """Asks every stage what it is; of one that does not answer, what it said last."""
    topology = pipeline.topology
    infos = await pipeline.stage_infos()
    return tuple(
        StageStatus(
            index=index,
            address=address,
            state=StageState.READY if is_open else StageState.LOST,
            info=info or known,
        )
        for index, (address, is_open, info, known) in enumerate(
            zip(topology.addresses, pipeline.open_stages, infos, topology.infos, strict=True)
        )
    )


def engine_status(
    *,
    topology: Topology,
    stages: tuple[StageStatus, ...],
    ready: bool,
    has_tokenizer: bool,
    scheduler: Scheduler,
    counters: EngineCounters,
    now_s: float,
) -> EngineStatus:
    """The state of the coordinator and of every stage.

    Args:
        topology: The stages as they were when they were connected.
        stages: As they are now.
        ready: Whether requests are served.
        has_tokenizer: Whether text is served.
        scheduler: What runs and waits.
        counters: Of the engine.
        now_s: On the monotonic clock.
    """
    return EngineStatus(
        model_id=topology.model_id,
        ready=ready,
        stages=stages,
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        max_num_seqs=scheduler.config.max_num_seqs,
        num_kv_blocks=scheduler.config.num_kv_blocks,
        num_free_kv_blocks=scheduler.num_free_kv_blocks,
        num_cached_kv_blocks=scheduler.num_cached_kv_blocks,
        max_model_len=scheduler.config.max_request_tokens,
        num_finished=counters.num_finished,
        num_generated_tokens=counters.throughput.total,
        num_preemptions=counters.num_preemptions,
        num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
        num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
        tokens_per_second=counters.throughput.tokens_per_second(now_s),
        has_tokenizer=has_tokenizer,
    )
