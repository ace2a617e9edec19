"""A pipeline in simulated time: the real scheduler and pace over stages that only take time.

Events in a heap, no clock, no network: thousands of rounds in a second, the same each time.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from coordinator.core.request import FinishReason, Request
from coordinator.core.step import SchedulerOutput
from coordinator.scheduler import Load, Pace, Scheduler, SchedulerConfig
from stagecoach.contract.stage_timings import StageTimings

MS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SimulatedStages:
    """How long a micro-batch takes."""

    num_stages: int
    compute_ns: Callable[[SchedulerOutput], float]
    """On one stage, when no other computes."""
    wire_ns: float = 0.3 * MS
    """To a stage and back."""
    slowdown: float = 0.0
    """Added share of the time for each other stage that computes when it starts: 0 for boxes of
    their own, 1 for stages that share one core."""


def weight_bound(output: SchedulerOutput) -> float:
    """13 layers of Llama-2 13B on an RTX 3060: weights, or FLOPs where those are more."""
    return max(24.0, 0.33 * output.num_tokens) * MS


def kv_bound(output: SchedulerOutput) -> float:
    """The same, reading the KV of every sequence besides."""
    kv_ms = 0.00074 * sum(piece.start_position for piece in output.slices)
    return max(24.0 + kv_ms, 0.33 * output.num_tokens) * MS


def compute_bound(output: SchedulerOutput) -> float:
    """A CPU without much to gain from batches."""
    return (2.0 + 1.5 * output.num_tokens) * MS


@dataclass
class _Running:
    """A micro-batch in flight."""

    output: SchedulerOutput
    load: Load
    depth: int
    timings: list[StageTimings[int]] = field(default_factory=list)
    arrived_ns: float = 0.0


class SimulatedCluster:
    """Serves requests until told to stop; every sequence gets the same token for ever.

    Args:
        stages: The stages.
        depth: Fixed micro-batches in flight; None lets the pace choose.
        max_num_seqs: Sequences at once.
    """

    def __init__(
        self, stages: SimulatedStages, *, depth: int | None = None, max_num_seqs: int = 128
    ) -> None:
        self.stages = stages
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_batched_tokens=2048,
                max_num_seqs=max_num_seqs,
                max_model_len=100_000,
                kv_block_size=16,
                num_kv_blocks=100_000,
                max_num_waiting=100_000,
            )
        )
        self.pace = Pace(num_stages=stages.num_stages, max_num_batched_tokens=2048, depth=depth)
        self.now_ns = 0.0
        self.token_times_ns: dict[str, list[float]] = {}
        self.depths: list[int] = []
        """Aimed at by each micro-batch."""
        self.batch_sizes: list[int] = []
        """Tokens of each micro-batch."""
        self._in_flight: dict[int, SchedulerOutput] = {}
        self._num_requests = 0
        self._events: list[tuple[float, int, int, _Running]] = []
        self._num_events = 0
        self._free_ns = [0.0] * stages.num_stages

    def add(self, num_requests: int, *, num_prompt: int = 32, max_tokens: int = 50_000) -> None:
        """New requests, now."""
        for _ in range(num_requests):
            request_id = f"r{self._num_requests}"
            self._num_requests += 1
            self.token_times_ns[request_id] = []
            self.scheduler.add(
                Request(
                    request_id=request_id,
                    prompt_token_ids=(1,) * num_prompt,
                    max_tokens=max_tokens,
                )
            )

    def run(self, seconds: float) -> None:
        """Goes on for so much simulated time."""
        end_ns = self.now_ns + seconds * 1e9
        self._fill()
        while self._events and self._events[0][0] <= end_ns:
            self.now_ns, _, stage, running = heapq.heappop(self._events)
            if stage < self.stages.num_stages:
                self._compute(stage, running)
            else:
                self._land(running)
        self.now_ns = end_ns

    def tokens_per_second(self, seconds: float) -> float:
        """Runs on, and returns what all sequences got done."""
        before = self._num_tokens()
        self.run(seconds)
        return (self._num_tokens() - before) / seconds

    def gaps_ns(self, *, since_ns: float, without: str = "") -> list[float]:
        """Times between tokens of one request, of all requests but one."""
        return [
            later - earlier
            for request_id, times in self.token_times_ns.items()
            if request_id != without
            for earlier, later in pairwise(times)
            if earlier >= since_ns
        ]

    def _num_tokens(self) -> int:
        return sum(map(len, self.token_times_ns.values()))

    def _fill(self) -> None:
        while True:
            load = self.scheduler.load()
            plan = self.pace.plan(
                load,
                num_in_flight=len(self._in_flight),
                num_prefill_only=sum(output.is_prefill_only for output in self._in_flight.values()),
            )
            output = plan and self.scheduler.schedule(plan.budget)
            if plan is None or output is None:
                return
            self.depths.append(plan.depth)
            self.batch_sizes.append(output.num_tokens)
            self._in_flight[output.micro_batch_id] = output
            running = _Running(output, load, plan.depth)
            self._push(self.now_ns + self.stages.wire_ns / 2, 0, running)

    def _push(self, time_ns: float, stage: int, running: _Running) -> None:
        self._num_events += 1  # equal times keep their order
        heapq.heappush(self._events, (time_ns, self._num_events, stage, running))

    def _compute(self, stage: int, running: _Running) -> None:
        """A micro-batch reaches a stage."""
        if self._free_ns[stage] > self.now_ns:
            self._push(self._free_ns[stage], stage, running)
            return
        num_others = sum(
            until_ns > self.now_ns for other, until_ns in enumerate(self._free_ns) if other != stage
        )
        compute_ns = self.stages.compute_ns(running.output) * (
            1 + self.stages.slowdown * num_others
        )
        self._free_ns[stage] = self.now_ns + compute_ns
        running.timings.append(StageTimings(0, int(compute_ns), 0, int(self.stages.wire_ns)))
        is_last = stage + 1 == self.stages.num_stages
        wire_ns = self.stages.wire_ns / 2 if is_last else self.stages.wire_ns
        self._push(self.now_ns + compute_ns + wire_ns, stage + 1, running)

    def _land(self, running: _Running) -> None:
        output = running.output
        del self._in_flight[output.micro_batch_id]
        sampled = {piece.request_id: (1,) for piece in output.slices if piece.num_sampled_rows}
        for sequence in self.scheduler.update(output, sampled):
            self.token_times_ns[sequence.request_id].append(self.now_ns)
            if sequence.at_max_tokens:
                self.scheduler.finish(sequence.request_id, FinishReason.LENGTH)
        self._fill()
        self.pace.observe(
            output,
            depth=running.depth,
            load=running.load,
            stages=running.timings,
            landed_ns=int(self.now_ns),
        )
