"""A pipeline in simulated time: the engine's own lane over stages that only take time.

Events in a heap, no clock, no network: thousands of rounds in a second, the same each time.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from coordinator.core.request import Request
from coordinator.core.sequence import Sequence as TokenSequence
from coordinator.core.step import LogitsRow, SchedulerOutput, StepOutput
from coordinator.engine.lane import Lane, OnLanded
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.mask_waits import MaskWaits
from coordinator.scheduler import Pace, Scheduler, SchedulerConfig
from coordinator.text.output_text import OutputText
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StageVisit

MS = 1_000_000

TOKEN = 1
"""What every sequence gets, for ever."""

VOCAB_SIZE = 2


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


@cache
def logits_row(row: int) -> LogitsRow:
    """What the last stage answers for one row of any micro-batch."""
    return LogitsRow(
        row=row, log_sum_exp=0.0, candidate_ids=(TOKEN,), candidate_logits=(0.0,), token_logits=()
    )


@dataclass
class _Running:
    """A micro-batch in flight."""

    output: SchedulerOutput
    logits: Sequence[LogitsRequest]
    on_landed: OnLanded
    timings: list[StageTimings[int]] = field(default_factory=list)

    def land(self) -> None:
        self.on_landed(
            StepOutput(
                micro_batch_id=self.output.micro_batch_id,
                logits=tuple(logits_row(wanted.row) for wanted in self.logits),
                stage_timings=tuple(self.timings),
                visits=tuple(StageVisit(0, 0, timings) for timings in self.timings),
            )
        )


class SimulatedRunner:
    """Implements `Runner` over stages that only take time.

    Args:
        stages: The stages; may be replaced at any time.
    """

    is_open = True
    blamed: frozenset[int] = frozenset()

    def __init__(self, stages: SimulatedStages) -> None:
        self.stages = stages
        self.now_ns = 0.0
        self._events: list[tuple[float, int, int, _Running]] = []
        self._num_events = 0
        self._free_ns = [0.0] * stages.num_stages

    def start(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        self._push(self.now_ns + self.stages.wire_ns / 2, 0, _Running(output, logits, on_landed))

    def advance(self, end_ns: float) -> bool:
        """Goes on until a micro-batch has landed; returns False when none does until `end_ns`."""
        while self._events and self._events[0][0] <= end_ns:
            self.now_ns, _, stage, running = heapq.heappop(self._events)
            if stage == self.stages.num_stages:
                running.land()
                return True
            self._compute(stage, running)
        self.now_ns = end_ns
        return False

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


class SimulatedCluster:
    """Serves requests until told to stop.

    Args:
        stages: The stages.
        depth: Fixed micro-batches in flight; None lets the pace choose.
        max_num_seqs: Sequences at once.
    """

    def __init__(
        self, stages: SimulatedStages, *, depth: int | None = None, max_num_seqs: int = 128
    ) -> None:
        self._runner = SimulatedRunner(stages)
        self._requests: dict[str, LiveRequest] = {}
        limits = SchedulerConfig(
            max_num_batched_tokens=2048,
            max_num_seqs=max_num_seqs,
            max_model_len=100_000,
            kv_block_size=16,
            num_kv_blocks=100_000,
        )
        self._lane = Lane(
            Scheduler(limits),
            Pace(num_stages=stages.num_stages, max_num_batched_tokens=2048, depth=depth),
            requests=self._requests,
            masks=MaskWaits(self._requests, asyncio.Event()),
            on_landed=lambda: None,
            clock=lambda: int(self._runner.now_ns),
        )
        self._lane.open(self._runner)
        self.token_times_ns: dict[str, list[float]] = {}
        self.depths: list[int] = []
        """Aimed at by each micro-batch that came back."""
        self.batch_sizes: list[int] = []
        """Tokens of each micro-batch that came back."""

    @property
    def now_ns(self) -> float:
        return self._runner.now_ns

    @property
    def stages(self) -> SimulatedStages:
        return self._runner.stages

    @stages.setter
    def stages(self, stages: SimulatedStages) -> None:
        self._runner.stages = stages

    @property
    def is_idle(self) -> bool:
        """True when all requests have ended, and the stages know it."""
        return self._lane.is_idle

    @property
    def num_running(self) -> int:
        return self._lane.figures().num_running

    def add(self, num_requests: int, *, num_prompt: int = 32, max_tokens: int = 50_000) -> None:
        """New requests, now."""
        for _ in range(num_requests):
            request_id = f"r{len(self.token_times_ns)}"
            self.token_times_ns[request_id] = []
            sequence = TokenSequence(
                request=Request(
                    request_id=request_id,
                    prompt_token_ids=(TOKEN,) * num_prompt,
                    max_tokens=max_tokens,
                )
            )
            self._lane.place(sequence)
            self._requests[request_id] = LiveRequest.of(
                sequence,
                num_stages=self.stages.num_stages,
                vocab_size=VOCAB_SIZE,
                text=OutputText(None, ()),
                constraint=None,
                on_cancel=lambda: None,
                clock=lambda: int(self._runner.now_ns),
            )

    def run(self, seconds: float) -> None:
        """Goes on for so much simulated time."""
        asyncio.run(self._run(self.now_ns + seconds * 1e9))

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

    async def _run(self, end_ns: float) -> None:
        """The engine's loop, without clients."""
        self._lane.fill()
        while self._runner.advance(end_ns):
            landed = await self._lane.land()
            assert not landed.failures
            for step in landed.steps:
                self.depths.append(step.micro_batch.depth)
                self.batch_sizes.append(step.micro_batch.output.num_tokens)
                for token in step.tokens:
                    request_id = token.live.request_id
                    self.token_times_ns[request_id].append(self.now_ns)
                    if token.reason is not None:
                        del self._requests[request_id]
            self._lane.fill()
            self._lane.learn()
            self._lane.rest()
