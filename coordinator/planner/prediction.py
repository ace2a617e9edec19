"""How fast a planned cluster decodes, and what keeps it from being faster.

A step sends a micro-batch through all stages in turn, and every message passes the coordinator.
Assumed: every sequence holds the same number of tokens; prompts are not counted; each box has one
full-duplex link; what the software adds to a step is given as a time, and it is the coordinator's,
which does one thing at a time.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from coordinator.planner.plan import Plan
from stagecoach.roofline.kv_memory import KV_BLOCK_SIZE
from stagecoach.roofline.networks import Network
from stagecoach.roofline.step_time import StageTime, step_time
from stagecoach.roofline.work import Work

OVERHEAD_PER_STAGE_S = 0.001
"""What the software adds to a step for every stage unless told otherwise: the target is 3 ms for
three stages."""

_ROW_BYTES = 64
"""A token's share of the messages that carry no hidden states: an id there, some logits back."""

_MORE_MICRO_BATCHES = 2
"""Micro-batches beyond one for each stage that are tried: they hide the wire."""


class Limit(StrEnum):
    """What would have to be better for a batch to be faster."""

    BANDWIDTH = "bandwidth"
    COMPUTE = "compute"
    HOST = "host"
    """Launches of kernels, and copies to and from the GPU."""
    WIRE = "wire"
    SOFTWARE = "software"
    KV_MEMORY = "KV memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is assumed of a cluster besides its GPUs."""

    network: Network
    efficiency: float = 1.0
    """Share (0, 1] of the published figures that the GPUs reach."""
    overhead_s: float
    """What the software adds to every step of one micro-batch."""
    context_tokens: int
    """Tokens that each sequence holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a batch decodes in one way."""

    tokens_per_s: float
    step_s: float
    """Time from one token of a sequence to its next."""
    num_micro_batches: int
    limit: Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The speed of one batch size."""

    batch_size: int
    num_running: int
    """Sequences for whose KV there is room; the others wait."""
    one_micro_batch: Speed
    pipelined: Speed
    """Prediction with the number of micro-batches that is fastest."""


class _Lap(NamedTuple):
    """One micro-batch on its way through all stages."""

    stages: tuple[StageTime, ...]
    wire_s: float
    """Until every message has arrived."""
    link_s: float
    """Time for which the coordinator's link is busy in its busier direction."""

    @property
    def gpu_s(self) -> float:
        return sum(stage.total_s for stage in self.stages)


def predict(plan: Plan, batch_size: int, conditions: Conditions) -> Prediction:
    """Predicts the speed of a batch.

    Args:
        plan: The cluster.
        batch_size: Sequences that decode together.
        conditions: What is assumed; the plan was made for at least as many context tokens.
    """
    blocks_per_sequence = -(-conditions.context_tokens // KV_BLOCK_SIZE)
    room = plan.kv_tokens // KV_BLOCK_SIZE // blocks_per_sequence
    num_running = min(batch_size, room)
    most = min(num_running, len(plan.stages) + _MORE_MICRO_BATCHES)
    speeds = [_speed(plan, num_running, count, conditions) for count in range(1, most + 1)]
    if num_running < batch_size:
        speeds = [replace(speed, limit=Limit.KV_MEMORY) for speed in speeds]
    return Prediction(
        batch_size=batch_size,
        num_running=num_running,
        one_micro_batch=speeds[0],
        pipelined=max(speeds, key=lambda speed: speed.tokens_per_s),
    )


def time_to_first_token_s(plan: Plan, conditions: Conditions) -> float:
    """Predicts how long a prompt of `context_tokens` tokens takes on an idle cluster, in one step.

    Args:
        plan: The cluster.
        conditions: What is assumed.
    """
    num_tokens = conditions.context_tokens
    lap = _lap(plan, Work.of([(0, num_tokens)], 1), conditions)
    return lap.gpu_s + lap.wire_s + conditions.overhead_s


def _speed(plan: Plan, num_running: int, num_micro_batches: int, conditions: Conditions) -> Speed:
    """Speed of sequences spread evenly over micro-batches.

    The next step of a micro-batch starts when its last one is back, and when each stage, the
    coordinator's link and its software have served the other micro-batches: the longest of these
    times is the step.
    """
    size, num_larger = divmod(num_running, num_micro_batches)
    sizes = [size + (index < num_larger) for index in range(num_micro_batches)]
    context_tokens = conditions.context_tokens
    laps = [_lap(plan, Work.decode(size, context_tokens), conditions) for size in sizes]
    busy_s = [sum(lap.stages[i].total_s for lap in laps) for i in range(len(plan.stages))]
    link_s = sum(lap.link_s for lap in laps)
    software_s = num_micro_batches * conditions.overhead_s
    longest = laps[0]  # the larger ones come first
    lap_s = longest.gpu_s + longest.wire_s + conditions.overhead_s
    step_s = max(lap_s, max(busy_s), link_s, software_s)
    if step_s == lap_s:
        limit = _lap_limit(longest, conditions)
    elif step_s == link_s:
        limit = Limit.WIRE
    elif step_s == software_s:
        limit = Limit.SOFTWARE
    else:
        limit = _gpu_limit(longest.stages[busy_s.index(step_s)])
    return Speed(
        tokens_per_s=num_running / step_s,
        step_s=step_s,
        num_micro_batches=num_micro_batches,
        limit=limit,
    )


def _lap(plan: Plan, work: Work, conditions: Conditions) -> _Lap:
    network = conditions.network
    hidden_s = network.transfer_s(work.num_tokens * plan.model.hidden_bytes_per_token)
    ends_s = network.transfer_s(work.num_tokens * _ROW_BYTES)
    num_hops = len(plan.stages) - 1  # each of them comes in and goes out at the coordinator
    return _Lap(
        stages=tuple(
            step_time(stage.cost, work, stage.gpu, efficiency=conditions.efficiency)
            for stage in plan.stages
        ),
        wire_s=2 * (num_hops * hidden_s + ends_s) + len(plan.stages) * network.round_trip_s,
        link_s=num_hops * hidden_s + ends_s,
    )


def _lap_limit(lap: _Lap, conditions: Conditions) -> Limit:
    """Whatever takes the largest part of a lap."""
    shares = dict.fromkeys(Limit, 0.0)
    shares[Limit.WIRE] = lap.wire_s
    shares[Limit.SOFTWARE] = conditions.overhead_s
    for stage in lap.stages:
        for limit, part_s in _parts(stage).items():
            shares[limit] += part_s
    return max(shares, key=lambda limit: shares[limit])


def _gpu_limit(time: StageTime) -> Limit:
    parts = _parts(time)
    return max(parts, key=lambda limit: parts[limit])


def _parts(time: StageTime) -> dict[Limit, float]:
    return {
        Limit.BANDWIDTH: time.bandwidth_s,
        Limit.COMPUTE: time.compute_s,
        Limit.HOST: time.host_s,
    }
