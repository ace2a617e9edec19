"""The state of an engine for operators, put together from its parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from coordinator.core.observation import EngineFigures, StageFigures
from coordinator.engine.lane import Lane
from coordinator.engine.throughput import ThroughputMeter
from coordinator.pipeline.topology import Topology
from coordinator.scheduler.config import SchedulerConfig
from stagecoach.contract.cluster_status import ModelStatus, StageStatus
from stagecoach.contract.float32 import as_meant


@dataclass(slots=True)
class EngineCounters:
    """What an engine counts from its start on."""

    num_finished: int = 0
    """Requests ended, by any cause."""
    throughput: ThroughputMeter = field(default_factory=ThroughputMeter)


def engine_status(
    *,
    topology: Topology,
    names: tuple[str, ...],
    stages: tuple[StageStatus, ...],
    ready: bool,
    problem: str,
    has_tokenizer: bool,
    lanes: Sequence[Lane],
    limits: SchedulerConfig,
    counters: EngineCounters,
    now_s: float,
) -> ModelStatus:
    """The state of the model and of every stage.

    Args:
        topology: The stages as they were when they were connected.
        names: What requests may call the model.
        stages: As they are now.
        ready: Whether requests are served.
        problem: Why they are not.
        has_tokenizer: Whether text is served.
        lanes: One for each pipeline, by its index: what runs and waits. Those that are open count
            for what can be held.
        limits: Limits of every lane's scheduler.
        counters: Counters of the engine.
        now_s: On the monotonic clock.
    """
    figures = engine_figures(is_ready=ready, lanes=lanes, limits=limits, stages=())
    return ModelStatus(
        model_id=topology.model_id,
        names=names,
        ready=ready,
        problem=problem,
        stages=tuple(_with_cached(stage, lanes) for stage in stages),
        num_running=figures.num_running,
        num_waiting=figures.num_waiting,
        max_num_seqs=limits.max_num_seqs * len(_usable(lanes)),
        num_kv_blocks=figures.num_kv_blocks,
        num_free_kv_blocks=figures.num_free_kv_blocks,
        num_cached_kv_blocks=figures.num_cached_kv_blocks,
        max_model_len=limits.max_request_tokens,
        num_finished=counters.num_finished,
        num_generated_tokens=counters.throughput.total,
        num_preemptions=figures.num_preemptions,
        num_prefix_query_tokens=figures.num_prefix_query_tokens,
        num_prefix_hit_tokens=figures.num_prefix_hit_tokens,
        num_draft_tokens=figures.num_draft_tokens,
        num_accepted_draft_tokens=figures.num_accepted_draft_tokens,
        tokens_per_second=as_meant(counters.throughput.tokens_per_second(now_s)),
        has_tokenizer=has_tokenizer,
    )


def _with_cached(stage: StageStatus, lanes: Sequence[Lane]) -> StageStatus:
    """Tells of a stage what its lane keeps for later requests; the stage itself does not know.

    A stage learns of what its lane gave up with the next micro-batch only.
    """
    if stage.pipeline is None:
        return stage
    num_held = stage.num_kv_blocks - stage.num_free_kv_blocks
    num_cached = lanes[stage.pipeline].figures().num_cached_kv_blocks
    return replace(stage, num_cached_kv_blocks=min(num_held, num_cached))


def engine_figures(
    *,
    is_ready: bool,
    lanes: Sequence[Lane],
    limits: SchedulerConfig,
    stages: tuple[StageFigures, ...],
) -> EngineFigures:
    """The state of the engine for those who count; costs nothing, from any thread.

    Args:
        is_ready: Whether requests are served.
        lanes: What runs and waits; those that are open count for what can be held.
        limits: Limits of every lane's scheduler.
        stages: In pipeline order.
    """
    figures = [lane.figures() for lane in lanes]
    usable = [lane.figures() for lane in _usable(lanes)]
    return EngineFigures(
        is_ready=is_ready,
        num_running=sum(one.num_running for one in figures),
        num_waiting=sum(one.num_waiting for one in figures),
        num_micro_batches=sum(one.num_micro_batches for one in figures),
        num_kv_blocks=limits.num_kv_blocks * len(usable),
        num_free_kv_blocks=sum(one.num_free_kv_blocks for one in usable),
        num_cached_kv_blocks=sum(one.num_cached_kv_blocks for one in usable),
        num_prefix_query_tokens=sum(one.num_prefix_query_tokens for one in figures),
        num_prefix_hit_tokens=sum(one.num_prefix_hit_tokens for one in figures),
        num_preemptions=sum(one.num_preemptions for one in figures),
        num_replays=sum(one.num_replays for one in figures),
        num_draft_tokens=sum(one.num_draft_tokens for one in figures),
        num_accepted_draft_tokens=sum(one.num_accepted_draft_tokens for one in figures),
        stages=stages,
    )


def _usable(lanes: Sequence[Lane]) -> Sequence[Lane]:
    """The lanes whose room counts: those that are open, or all while none is."""
    return [lane for lane in lanes if lane.is_open] or lanes
