"""What each micro-batch did and when, as a watcher gets it."""

from dataclasses import dataclass

from stagecoach.contract.errors import InternalError
from stagecoach.v1 import generation_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class StageVisit:
    """A micro-batch at one stage.

    Instants are nanoseconds since the watch began, by the coordinator's clock; durations are
    nanoseconds by the stage's.
    """

    sent_ns: int
    """When the coordinator sent it."""
    arrived_ns: int
    """When the answer arrived."""
    queue_ns: int
    """Waiting inside the stage."""
    compute_ns: int
    """The forward."""
    serialize_ns: int
    """Reading and writing messages inside the stage."""

    @property
    def wire_ns(self) -> int:
        """What the durations leave of the time between sending and arrival."""
        inside_ns = self.queue_ns + self.compute_ns + self.serialize_ns
        return max(0, self.arrived_ns - self.sent_ns - inside_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One micro-batch that went through all stages; instants in nanoseconds since the start."""

    micro_batch_id: int
    """Rises in the order of scheduling."""
    num_sequences: int
    """0 when it only frees KV slots."""
    num_prefill_tokens: int
    """Rows that are not decode: prompts, and what is computed again."""
    num_decode_tokens: int
    """Rows of sequences that ran one token and sampled the next."""
    started_ns: int
    """When scheduling it began."""
    scheduled_ns: int
    """When it was ready to be sent."""
    stages: tuple[StageVisit, ...]
    """One a stage, in order."""
    returned_ns: int
    """When its logits were taken up."""
    sampled_ns: int
    """When its tokens were sampled."""
    emitting_ns: int
    """When turning them into text and sending them began."""
    emitted_ns: int
    """When its tokens were on their way to the clients."""


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
            StageVisit(
                sent_ns=visit.sent_ns,
                arrived_ns=visit.arrived_ns,
                queue_ns=visit.queue_ns,
                compute_ns=visit.compute_ns,
                serialize_ns=visit.serialize_ns,
            )
            for visit in message.stages
        ),
        returned_ns=message.returned_ns,
        sampled_ns=message.sampled_ns,
        emitting_ns=message.emitting_ns,
        emitted_ns=message.emitted_ns,
    )
