"""What one micro-batch did and when, for those who watch."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from coordinator.core.step import SchedulerOutput, StageSpan, StageTimings, StepOutput


class StepInstants(NamedTuple):
    """When the coordinator did its part of a step, in nanoseconds of `time.perf_counter_ns`."""

    started_ns: int
    """Scheduling began."""
    scheduled_ns: int
    """Ready to be sent."""
    returned_ns: int
    """The logits were taken up."""
    sampled_ns: int
    emitting_ns: int
    """Turning the tokens into text and sending them began."""
    emitted_ns: int
    """The tokens were on their way to the clients."""


class StageVisit(NamedTuple):
    """A micro-batch at one stage; what the durations leave of the span is the wire."""

    span: StageSpan
    queue_ns: int
    compute_ns: int
    serialize_ns: int
    """Inside the stage alone."""

    @classmethod
    def of(cls, span: StageSpan, timings: StageTimings) -> Self:
        """Takes the coordinator's share of the serialization, which lies outside the span, out."""
        inside_ns = span.arrived_ns - span.sent_ns - timings.wire_ns
        serialize_ns = inside_ns - timings.queue_ns - timings.compute_ns
        return cls(span, timings.queue_ns, timings.compute_ns, max(0, serialize_ns))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One micro-batch that went through all stages."""

    micro_batch_id: int
    num_sequences: int
    """0 when it only frees KV slots."""
    num_prefill_tokens: int
    """Rows that are not decode: prompts, and what is computed again."""
    num_decode_tokens: int
    instants: StepInstants
    stages: tuple[StageVisit, ...]
    """One a stage, in order."""

    @classmethod
    def of(cls, output: SchedulerOutput, step: StepOutput, instants: StepInstants) -> Self:
        """Puts together what was decided, what came back, and when."""
        return cls(
            micro_batch_id=output.micro_batch_id,
            num_sequences=len(output.slices),
            num_prefill_tokens=output.num_tokens - output.num_decode_tokens,
            num_decode_tokens=output.num_decode_tokens,
            instants=instants,
            stages=tuple(map(StageVisit.of, step.stage_spans, step.stage_timings)),
        )
