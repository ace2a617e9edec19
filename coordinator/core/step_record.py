"""Makes the record of one micro-batch for those who watch."""

from coordinator.core.step import SchedulerOutput, StepOutput
from stagecoach.contract.step_record import StepInstants, StepRecord


def step_record(output: SchedulerOutput, step: StepOutput, instants: StepInstants) -> StepRecord:
    """Puts together what was decided, what came back, and when."""
    return StepRecord(
        micro_batch_id=output.micro_batch_id,
        num_sequences=len(output.slices),
        stages=step.visits,
        **output.count_tokens()._asdict(),
        started_ns=instants.started_ns,
        scheduled_ns=instants.scheduled_ns,
        sampling_ns=instants.sampling_ns,
        sampled_ns=instants.sampled_ns,
        decided_ns=instants.decided_ns,
        emitting_ns=instants.emitting_ns,
        emitted_ns=instants.emitted_ns,
    )
