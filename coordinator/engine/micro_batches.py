"""The micro-batches that are on their way through the pipeline, each in a task of its own.

The engine starts them and takes them in; between the two they touch nothing that is the engine's.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.core.step import LogitsRequest, SchedulerOutput, StepOutput
from coordinator.pipeline.pipeline import Pipeline
from coordinator.scheduler.load import Load


@dataclass(slots=True, kw_only=True, eq=False)
class MicroBatch:
    """What was scheduled, why so, and what came back."""

    output: SchedulerOutput
    load: Load
    """What there was to do when it was scheduled."""
    depth: int
    """Micro-batches in flight that were aimed at then."""
    started_ns: int
    """When scheduling it began."""
    scheduled_ns: int
    """When it was ready to go."""
    result: StepOutput | Exception | None = None
    """None while it is on its way."""
    returned_ns: int = 0


class MicroBatches:
    """Starts micro-batches and keeps them until they are taken in. Used from one event loop.

    Args:
        on_landed: Called each time that one came back.
    """

    def __init__(self, on_landed: Callable[[], None]) -> None:
        self._on_landed = on_landed
        self._in_flight: set[MicroBatch] = set()
        self._landed: list[MicroBatch] = []
        self._tasks: set[asyncio.Task[None]] = set()

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
        """Those of them in which no sequence decodes."""
        return sum(one.output.is_prefill_only for one in self._in_flight)

    @property
    def is_empty(self) -> bool:
        """True when every micro-batch was taken in."""
        return not self._in_flight and not self._landed

    def start(
        self, micro_batch: MicroBatch, wanted: list[LogitsRequest], pipeline: Pipeline
    ) -> None:
        """Sends a micro-batch through a pipeline, behind all that were started before."""
        self._in_flight.add(micro_batch)
        task = asyncio.create_task(self._run(micro_batch, wanted, pipeline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def take_landed(self) -> list[MicroBatch]:
        """Hands over those that came back, in the order in which they did."""
        landed, self._landed = self._landed, []
        return landed

    def abandon(self) -> None:
        """Forgets everything in flight, after the loss of a stage.

        Nothing of it reaches a stage any more, and what comes back of it is dropped.
        """
        self._in_flight.clear()
        self._landed.clear()

    async def close(self) -> None:
        """Ends all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(
        self, micro_batch: MicroBatch, wanted: list[LogitsRequest], pipeline: Pipeline
    ) -> None:
        try:
            micro_batch.result = await pipeline.run(micro_batch.output, wanted)
        except Exception as error:  # for the engine to sort out
            micro_batch.result = error
        micro_batch.returned_ns = time.perf_counter_ns()
        if micro_batch in self._in_flight:
            self._in_flight.remove(micro_batch)
            self._landed.append(micro_batch)
            self._on_landed()
