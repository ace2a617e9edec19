"""What one micro-batch did and when, for those who watch. Standard library only."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from stagecoach.contract.stage_timings import StageTimings


class StageVisit(NamedTuple):
    """A micro-batch at one stage.

    Instants are nanoseconds by the coordinator's clock; durations are nanoseconds by the stage's.
    """

    sent_ns: int
    """When the coordinator sent it."""
    arrived_ns: int
    """When the answer arrived."""
    timings: StageTimings[int]
    """What became of the time in between; the serialization is that inside the stage alone."""

    @classmethod
    def of(
        cls, sent_ns: int, arrived_ns: int, *, queue_ns: int, compute_ns: int, serialize_ns: int
    ) -> Self:
        """Takes for the wire what the durations of the stage leave of the round trip."""
        inside_ns = queue_ns + compute_ns + serialize_ns
        wire_ns = max(0, arrived_ns - sent_ns - inside_ns)
        return cls(sent_ns, arrived_ns, StageTimings(queue_ns, compute_ns, serialize_ns, wire_ns))

    @property
    def queue_ns(self) -> int:
        """Waiting inside the stage."""
        return self.timings.queue_ns

    @property
    def compute_ns(self) -> int:
        """The forward."""
        return self.timings.compute_ns

    @property
    def serialize_ns(self) -> int:
        """Reading and writing messages inside the stage."""
        return self.timings.serialize_ns

    @property
    def wire_ns(self) -> int:
        """What the durations leave of the time between sending and arrival."""
        return self.timings.wire_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInstants:
    """When the coordinator did its part of one micro-batch, and how long each part took.

    Instants are nanoseconds since an origin: of `time.perf_counter_ns` inside the coordinator, of
    the watch for a client. Whoever shows where the time of a step went takes these durations.
    """

    started_ns: int
    """When scheduling it began."""
    scheduled_ns: int
    """When it was ready to be sent."""
    sampling_ns: int
    """When its logits were taken up, and sampling began."""
    sampled_ns: int
    """When its tokens were chosen, and the scheduler had them."""
    decided_ns: int
    """When it was known which of them are the last of their requests."""
    emitting_ns: int
    """When turning them into text and sending them began."""
    emitted_ns: int
    """When they were on their way to the clients."""

    @property
    def schedule_ns(self) -> int:
        """Deciding what runs."""
        return self.scheduled_ns - self.started_ns

    @property
    def sample_ns(self) -> int:
        """Choosing the tokens."""
        return self.sampled_ns - self.sampling_ns

    @property
    def detokenize_ns(self) -> int:
        """Deciding which tokens are the last, turning tokens into text, and sending it.

        With stop strings, the text is made in order to decide.
        """
        return self.decided_ns - self.sampled_ns + self.emitted_ns - self.emitting_ns

    @property
    def step_ns(self) -> int:
        """From the start of scheduling until it was decided, and the sending.

        The time in between, in which the next step is scheduled, does not count.
        """
        return self.decided_ns - self.started_ns + self.emitted_ns - self.emitting_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord(StepInstants):
    """One micro-batch that went through all stages."""

    micro_batch_id: int
    """Rises in the order of scheduling."""
    num_sequences: int
    """0 when it only frees KV slots."""
    num_prefill_tokens: int
    """Rows that are not of a decode: prompts, and what is computed again."""
    num_decode_tokens: int
    """Rows of decodes, which are slices from whose every row a token is sampled."""
    stages: tuple[StageVisit, ...]
    """Visits to the stages, in pipeline order."""
