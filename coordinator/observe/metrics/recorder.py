"""Counts what the engine does, in plain numbers that any thread may read."""

import time
from collections import Counter
from collections.abc import Callable

from coordinator.core.observation import RequestEnd, StepSummary
from coordinator.core.request import FinishReason
from coordinator.observe.metrics.bubbles import BubbleMeter
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.telemetry.histogram import (
    NS_PER_S,
    REQUEST_BOUNDS_S,
    STEP_BOUNDS_S,
    TOKEN_BOUNDS,
    Histogram,
)


class StageHistograms:
    """Histograms of the parts of a micro-batch at one stage."""

    def __init__(self) -> None:
        self.queue = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.compute = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.serialize = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)
        self.wire = Histogram(STEP_BOUNDS_S, unit=NS_PER_S)

    def observe(self, timings: StageTimings[int]) -> None:
        """Adds one micro-batch."""
        self.queue.observe(timings.queue_ns)
        self.compute.observe(timings.compute_ns)
        self.serialize.observe(timings.serialize_ns)
        self.wire.observe(timings.wire_ns)


class MetricsRecorder:
    """An `EngineObserver` that counts. Written on the event loop only.

    Args:
        clock: Monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.now_ns = clock
        self.num_accepted = 0
        self.num_ended = 0
        self.ends = Counter({reason.value: 0 for reason in FinishReason})
        self.errors = Counter(_zeros(InternalError, UnavailableError, DeadlineExceededError))
        self.refusals = Counter(
            _zeros(
                InvalidArgumentError, ContextLengthExceededError, QueueFullError, UnavailableError
            )
        )
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_steps = 0
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.time_to_first_token = Histogram(REQUEST_BOUNDS_S, unit=NS_PER_S)
        self.inter_token = Histogram(REQUEST_BOUNDS_S, unit=NS_PER_S)
        self.queue_time = Histogram(REQUEST_BOUNDS_S, unit=NS_PER_S)
        self.whole_request = Histogram(REQUEST_BOUNDS_S, unit=NS_PER_S)
        self.prompt_tokens = Histogram(TOKEN_BOUNDS)
        self.generated_tokens = Histogram(TOKEN_BOUNDS)
        self.stages: list[StageHistograms] = []
        self.bubbles = BubbleMeter()

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        """Counts a request and its prompt."""
        if self.num_accepted == self.num_ended:
            self.bubbles.begin(self.now_ns())
        self.num_accepted += 1
        self.num_prompt_tokens += num_prompt_tokens

    def request_refused(self, error: StagecoachError) -> None:
        """Counts it by the kind of error."""
        self.refusals[error.reason] += 1

    def request_ended(self, end: RequestEnd) -> None:
        """Counts it by how it ended, and its times."""
        self.num_ended += 1
        if self.num_accepted == self.num_ended:
            self.bubbles.end(self.now_ns())
        self.ends[end.reason.value] += 1
        if end.error is not None:
            self.errors[end.error.reason] += 1
        if end.first_step_ns is not None:
            self.queue_time.observe(end.first_step_ns - end.arrival_ns)
        if end.first_token_ns is not None:
            self.time_to_first_token.observe(end.first_token_ns - end.arrival_ns)
        self.whole_request.observe(end.end_ns - end.arrival_ns)
        self.prompt_tokens.observe(end.num_prompt_tokens)
        self.generated_tokens.observe(end.num_completion_tokens)

    def step_ended(self, step: StepSummary) -> None:
        """Counts its tokens and times; the one call on the way of every token.

        A micro-batch that only frees KV slots would pull all times down, and is left out.
        """
        if step.num_prefill_tokens + step.num_decode_tokens == 0:
            return
        self.num_steps += 1
        self.num_prefill_tokens += step.num_prefill_tokens
        self.num_decode_tokens += step.num_decode_tokens
        self.num_generated_tokens += step.num_sent_tokens
        for duration_ns, num_tokens in step.inter_token_ns.items():
            self.inter_token.observe(duration_ns, num_tokens)
        while len(self.stages) < len(step.stages):
            self.stages.append(StageHistograms())
        for times, timings in zip(self.stages, step.stages, strict=True):
            times.observe(timings)
        self.bubbles.add([timings.compute_ns for timings in step.stages], self.now_ns())


def _zeros(*errors: type[StagecoachError]) -> dict[str, int]:
    return {error.reason: 0 for error in errors}
