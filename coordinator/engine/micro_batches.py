"""The micro-batches of one lane: those that are on their way, and those that came back."""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.engine.live_request import LiveRequest
from coordinator.scheduler.load import Load


@dataclass(slots=True, kw_only=True, eq=False)
class MicroBatch:
    """What was scheduled, why so, and what came back."""

    output: SchedulerOutput
    participants: Sequence[LiveRequest]
    """The requests of its slices."""
    load: Load
    """What there was to do when it was scheduled."""
    depth: int
    """Micro-batches in flight that were aimed at then."""
    started_ns: int
    """When scheduling it began."""
    scheduled_ns: int
    """When it was ready to go."""
    result: StepOutput | Exception | None = None
    """What the pipeline answered; None while the micro-batch is on its way."""
    landed_ns: int = 0
    """When the micro-batch came back; without meaning before."""


class MicroBatches:
    """Keeps micro-batches from their start until they are taken in. Used from one event loop."""

    def __init__(self) -> None:
        self._in_flight: set[MicroBatch] = set()
        self._landed: list[MicroBatch] = []

    @property
    def num_in_flight(self) -> int:
        """Micro-batches on their way. Any thread."""
        return len(self._in_flight)

    @property
    def num_computing(self) -> int:
        """Micro-batches in flight that hold tokens; others only free slots."""
        return sum(bool(one.output.slices) for one in self._in_flight)

    @property
    def num_prefill_only(self) -> int:
        """Micro-batches in flight in which no sequence decodes."""
        return sum(one.output.is_prefill_only for one in self._in_flight)

    @property
    def is_empty(self) -> bool:
        """True when every micro-batch was taken in."""
        return not self._in_flight and not self._landed

    def start(self, micro_batch: MicroBatch) -> None:
        """Takes in a micro-batch that is about to be sent."""
        self._in_flight.add(micro_batch)

    def land(self, micro_batch: MicroBatch, result: StepOutput | Exception, landed_ns: int) -> bool:
        """Notes what became of a micro-batch; returns False when it was abandoned before."""
        if micro_batch not in self._in_flight:
            return False
        self._in_flight.remove(micro_batch)
        micro_batch.result = result
        micro_batch.landed_ns = landed_ns
        self._landed.append(micro_batch)
        return True

    def take_landed(self) -> list[MicroBatch]:
        """Hands over those that came back, in the order in which they did."""
        landed, self._landed = self._landed, []
        return landed

    def abandon(self) -> None:
        """Forgets everything in flight, and what came back and was not taken in."""
        self._in_flight.clear()
        self._landed.clear()
