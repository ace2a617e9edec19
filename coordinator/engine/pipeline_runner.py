"""Sends the micro-batches of a lane through a pipeline, each in a task of its own."""

import asyncio
from collections.abc import Sequence

from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.engine.lane import OnLanded
from coordinator.pipeline.pipeline import Pipeline
from stagecoach.contract.logits_request import LogitsRequest


class PipelineRunner:
    """Implements `Runner` over one pipeline. Event loop only.

    Args:
        pipeline: Open, with empty slots.
        tasks: Where the tasks stand while they run; whoever owns the set ends them.
    """

    def __init__(self, pipeline: Pipeline, tasks: set[asyncio.Task[None]]) -> None:
        self._pipeline = pipeline
        self._tasks = tasks

    @property
    def is_open(self) -> bool:
        """See `Runner.is_open`."""
        return self._pipeline.is_open

    @property
    def blamed(self) -> frozenset[int]:
        """See `Runner.blamed`."""
        return self._pipeline.blamed

    def start(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        """See `Runner.start`."""
        task = asyncio.create_task(self._run(output, logits, on_landed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        result: StepOutput | Exception
        try:
            result = await self._pipeline.run(output, logits)
        except Exception as error:  # for the lane to sort out
            result = error
        on_landed(result)
