"""Where the time of one request went. Standard library only."""

from dataclasses import dataclass

from stagecoach.contract.stage_timings import StageTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Sums over some steps of a request, in nanoseconds; fields as in `RequestTimings`."""

    num_steps: int
    schedule_ns: int
    sample_ns: int
    detokenize_ns: int
    step_ns: int
    stages: tuple[StageTimings[int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimings:
    """Where the time of one request went, in nanoseconds, by the coordinator's clock.

    The per-step figures are sums over the steps that the request took part in; a step is shared by
    all sequences in its micro-batch.
    """

    queue_ns: int
    """Time from acceptance to the first scheduled step."""
    time_to_first_token_ns: int | None
    """Time from acceptance to the first token. None when there was none."""
    total_ns: int
    """Time from acceptance to the end."""
    num_steps: int
    """Steps that the request took part in."""
    schedule_ns: int
    """Deciding what runs."""
    sample_ns: int
    """Choosing tokens."""
    detokenize_ns: int
    """Deciding which tokens are the last, turning tokens into text, and sending it."""
    step_ns: int
    """Wall time of the steps: from the start of scheduling until it was decided which tokens are
    the last, and the sending, which may overlap with the next step."""
    stages: tuple[StageTimings[int], ...]
    """Times at each stage, in pipeline order; `serialize_ns` counts the stage's and the
    coordinator's."""
    num_preemptions: int = 0
    """Times that the request gave up its KV to others, and it was computed again."""
    num_replays: int = 0
    """Times that the request lost its KV to a fault, and it was computed again."""
    prefill: StepTotals | None = None
    """The part of these that is prefill: the steps up to the one that made the first token, and
    that one. None when there was no token."""

    @property
    def other_ns(self) -> int:
        """Time of the steps that nothing above accounts for."""
        stages_ns = sum(stage.total_ns for stage in self.stages)
        return self.step_ns - stages_ns - self.schedule_ns - self.sample_ns - self.detokenize_ns
