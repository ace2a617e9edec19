"""Reads what each micro-batch did and when, as a watcher gets it."""

from stagecoach.contract.errors import InternalError
from stagecoach.contract.step_record import StageVisit, StepRecord
from stagecoach.v1 import generation_pb2


class StepReader:
    """Turns the messages of one WatchSteps call into records, one at a time. No I/O."""

    def __init__(self) -> None:
        self.num_lost = 0
        """Over all messages."""
        self._records: list[StepRecord] = []

    def take(self, message: generation_pb2.WatchStepsResponse) -> None:
        """Takes in one message after the first."""
        self.num_lost += message.steps.num_lost
        self._records = [_record(one) for one in reversed(message.steps.records)]

    def next(self) -> StepRecord | None:
        """Hands out the next record; None when there is none."""
        return self._records.pop() if self._records else None


def read_origin_unix_ns(message: object, address: str) -> int:
    """Reads the first message of a watch: the wall clock of the coordinator at its start.

    Raises:
        InternalError: It is not what a watch starts with.
    """
    if (
        not isinstance(message, generation_pb2.WatchStepsResponse)
        or message.WhichOneof("event") != "started"
    ):
        raise InternalError(f"coordinator at {address} did not say when the watch began")
    return message.started.origin_unix_ns


def _record(message: generation_pb2.StepRecord) -> StepRecord:
    return StepRecord(
        micro_batch_id=message.micro_batch_id,
        num_sequences=message.num_sequences,
        num_prefill_tokens=message.num_prefill_tokens,
        num_decode_tokens=message.num_decode_tokens,
        started_ns=message.started_ns,
        scheduled_ns=message.scheduled_ns,
        stages=tuple(
            StageVisit.of(
                visit.sent_ns,
                visit.arrived_ns,
                queue_ns=visit.queue_ns,
                compute_ns=visit.compute_ns,
                serialize_ns=visit.serialize_ns,
            )
            for visit in message.stages
        ),
        sampling_ns=message.sampling_ns,
        sampled_ns=message.sampled_ns,
        decided_ns=(message.decided_ns if message.HasField("decided_ns") else message.sampled_ns),
        emitting_ns=message.emitting_ns,
        emitted_ns=message.emitted_ns,
    )
