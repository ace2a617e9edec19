"""Makes the record of one micro-batch for those who watch."""

from typing import NamedTuple

from coordinator.core.step import SchedulerOutput, StepOutput
from stagecoach.contract.step_record import StepRecord


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


def step_record(output: SchedulerOutput, step: StepOutput, instants: StepInstants) -> StepRecord:
    """Puts together what was decided, what came back, and when."""
    return StepRecord(
        micro_batch_id=output.micro_batch_id,
        num_sequences=len(output.slices),
        stages=step.visits,
        **output.count_tokens()._asdict(),
        **instants._asdict(),
    )
