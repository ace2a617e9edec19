"""The pace over simulated clusters: it finds the best depth, and never stays on a bad one."""

import pytest

from coordinator.core.step import ScheduledSlice, SchedulerOutput
from coordinator.scheduler.load import Load
from coordinator.scheduler.pace import Pace
from stagecoach.contract.stage_timings import StageTimings
from tests.simulated_cluster import (
    MS,
    SimulatedCluster,
    SimulatedStages,
    compute_bound,
    kv_bound,
    weight_bound,
)

CLUSTERS = {
    "weights dominate": (SimulatedStages(num_stages=3, compute_ns=weight_bound), 8),
    "many sequences": (SimulatedStages(num_stages=3, compute_ns=weight_bound), 96),
    "reading KV dominates": (SimulatedStages(num_stages=4, compute_ns=kv_bound), 96),
    "a slow wire": (SimulatedStages(num_stages=4, compute_ns=kv_bound, wire_ns=10 * MS), 96),
    "boxes without a GPU": (SimulatedStages(num_stages=3, compute_ns=compute_bound), 8),
    "stages share a core": (
        SimulatedStages(num_stages=3, compute_ns=compute_bound, slowdown=1.0),
        8,
    ),
    "stages disturb each other": (
        SimulatedStages(num_stages=3, compute_ns=compute_bound, slowdown=1.5),
        8,
    ),
    "stages share two cores": (
        SimulatedStages(num_stages=3, compute_ns=compute_bound, slowdown=0.4),
        8,
    ),
    "one stage": (SimulatedStages(num_stages=1, compute_ns=compute_bound, wire_ns=3 * MS), 8),
    "eight stages": (SimulatedStages(num_stages=8, compute_ns=compute_bound), 32),
}


def steady_rate(stages: SimulatedStages, num_requests: int, *, depth: int | None = None) -> float:
    """Tokens a second after five seconds."""
    cluster = SimulatedCluster(stages, depth=depth)
    cluster.add(num_requests)
    cluster.run(5)
    return cluster.tokens_per_second(15)


@pytest.mark.parametrize("name", CLUSTERS)
def test_reaches_what_the_best_fixed_depth_reaches(name: str) -> None:
    stages, num_requests = CLUSTERS[name]
    fixed = [
        steady_rate(stages, num_requests, depth=depth) for depth in range(1, stages.num_stages + 3)
    ]
    assert steady_rate(stages, num_requests) >= 0.95 * max(fixed)


@pytest.mark.parametrize("name", CLUSTERS)
def test_is_never_worse_than_one_at_a_time_beyond_what_trials_cost(name: str) -> None:
    stages, num_requests = CLUSTERS[name]
    cluster, single = SimulatedCluster(stages), SimulatedCluster(stages, depth=1)
    for each in (cluster, single):
        each.add(num_requests)
    cluster.run(4)
    single.run(4)
    for _ in range(8):
        assert cluster.tokens_per_second(2) >= 0.94 * single.tokens_per_second(2)


def test_one_sequence_is_always_alone_in_flight() -> None:
    cluster = SimulatedCluster(SimulatedStages(num_stages=3, compute_ns=weight_bound))
    cluster.add(1)
    cluster.run(5)
    assert set(cluster.depths) == {1}


def test_depth_follows_the_load_up_and_down() -> None:
    stages = SimulatedStages(num_stages=3, compute_ns=compute_bound)
    cluster = SimulatedCluster(stages)
    cluster.add(1)
    cluster.run(2)
    cluster.add(11, max_tokens=300)
    cluster.run(2)
    assert cluster.depths[-1] >= 3
    cluster.run(20)
    assert cluster.num_running == 1
    assert cluster.depths[-1] == 1


def test_a_depth_that_failed_is_tried_again_ever_more_rarely() -> None:
    stages = SimulatedStages(num_stages=3, compute_ns=compute_bound, slowdown=1.5)
    cluster = SimulatedCluster(stages)
    cluster.add(8)
    cluster.run(60)
    early = len(cluster.depths)
    cluster.run(240)
    late = cluster.depths[early:]
    assert sum(depth > 1 for depth in late) <= 0.02 * len(late)


def test_finds_the_better_depth_when_stages_stop_sharing_cores() -> None:
    shared = SimulatedStages(num_stages=3, compute_ns=compute_bound, slowdown=1.5)
    cluster = SimulatedCluster(shared)
    cluster.add(8)
    cluster.run(20)
    assert cluster.depths[-1] == 1
    cluster.stages = SimulatedStages(num_stages=3, compute_ns=compute_bound)
    before = cluster.tokens_per_second(5)
    end_ns = cluster.now_ns + 300e9
    while cluster.tokens_per_second(20) <= 1.8 * before:
        assert cluster.now_ns < end_ns, "it is found in five minutes"


@pytest.mark.parametrize("name", ["a slow wire", "reading KV dominates", "eight stages"])
def test_a_burst_does_not_begin_with_the_trials_of_the_last(name: str) -> None:
    stages, num_requests = CLUSTERS[name]
    cluster = SimulatedCluster(stages)
    num_singles = []
    for _ in range(12):
        first = len(cluster.depths)
        cluster.add(num_requests, max_tokens=64)
        while not cluster.is_idle:
            cluster.run(0.05)
        steps = zip(cluster.depths[first:], cluster.batch_sizes[first:], strict=True)
        num_singles.append(sum(step == (1, num_requests) for step in steps))
    assert num_singles[0] > 0, "one at a time was compared with"
    assert sum(num > 0 for num in num_singles[4:]) <= 1


def test_decodes_are_spread_evenly_over_micro_batches() -> None:
    stages = SimulatedStages(num_stages=4, compute_ns=weight_bound)
    cluster = SimulatedCluster(stages, depth=4)
    cluster.add(30)
    cluster.run(5)
    sizes = cluster.batch_sizes[-40:]
    assert set(sizes) == {7, 8} or set(sizes) == {8, 6}


@pytest.mark.parametrize("num_running", [1, 8, 40])
@pytest.mark.parametrize("compute_ns", [weight_bound, kv_bound])
def test_running_streams_hardly_feel_a_long_prompt(num_running: int, compute_ns: object) -> None:
    assert callable(compute_ns)
    cluster = SimulatedCluster(SimulatedStages(num_stages=4, compute_ns=compute_ns))
    cluster.add(num_running)
    cluster.run(10)
    undisturbed = cluster.gaps_ns(since_ns=5e9)
    p50_ns = sorted(undisturbed)[len(undisturbed) // 2]
    start_ns = cluster.now_ns
    cluster.add(1, num_prompt=2000)
    cluster.run(20)
    newcomer = f"r{num_running}"
    assert cluster.token_times_ns[newcomer], "the prompt got done"
    gaps = sorted(cluster.gaps_ns(since_ns=start_ns, without=newcomer))
    assert gaps[int(0.99 * len(gaps))] <= 3 * p50_ns
    assert gaps[-1] <= 4 * p50_ns


def test_copes_with_prompts_that_cost_nothing_while_the_only_stream_waits_for_memory() -> None:
    pace = Pace(num_stages=3, max_num_batched_tokens=512)
    load = Load(num_decodes=1, num_prefills=2, num_prefill_tokens=64, empty_kv_share=0.0)
    depths = set()
    for step in range(100):
        plan = pace.plan(load, num_in_flight=0, num_prefill_only=0)
        assert plan is not None
        depths.add(plan.depth)
        num_tokens = 32 if step else 64
        piece = ScheduledSlice("prompt", 0, 0, (1,) * num_tokens, num_sampled_rows=0)
        pace.observe(
            SchedulerOutput(micro_batch_id=step, slices=(piece,), slot_ops=()),
            depth=plan.depth,
            load=load,
            stages=[StageTimings(queue_ns=0, compute_ns=10 * MS, serialize_ns=0, wire_ns=0)] * 3,
            landed_ns=step * 30 * MS,
        )
    assert len(depths) > 1, "depths were compared"


def test_a_prompt_that_comes_alone_is_not_cut() -> None:
    cluster = SimulatedCluster(SimulatedStages(num_stages=3, compute_ns=weight_bound))
    cluster.add(1)
    cluster.run(2)
    cluster = SimulatedCluster(cluster.stages)
    cluster.add(1, num_prompt=2000)
    cluster.run(5)
    assert cluster.batch_sizes[0] == 2000


def test_prompts_that_come_together_are_spread_over_the_stages() -> None:
    stages = SimulatedStages(num_stages=4, compute_ns=weight_bound)
    times = []
    for depth in (1, None):
        cluster = SimulatedCluster(stages, depth=depth)
        cluster.add(16, num_prompt=512, max_tokens=1)
        while not cluster.is_idle:
            cluster.run(0.1)
        times.append(cluster.now_ns)
    assert times[1] < 0.5 * times[0]
