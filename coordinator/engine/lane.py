"""One pipeline and all that runs on it: its scheduler, its pace, its micro-batches.

A lane outlives its pipelines: when a stage is lost, its sequences wait again, here or elsewhere,
and the next pipeline that can be formed serves it.
"""

import time
from collections.abc import Callable, Mapping

from coordinator.core.sequence import Sequence
from coordinator.engine.batch_sampling import logits_requests
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.micro_batches import MicroBatch, MicroBatches
from coordinator.pipeline.pipeline import Pipeline
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.scheduler import Scheduler


class Lane:
    """Fills one pipeline with the sequences of one scheduler. Owned by the engine's task.

    Args:
        scheduler: Empty.
        pace: Says how many micro-batches are in flight.
        on_landed: Called each time that a micro-batch came back.
    """

    def __init__(self, scheduler: Scheduler, pace: Pace, on_landed: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.pace = pace
        self.micro_batches = MicroBatches(on_landed)
        self._pipeline: Pipeline | None = None
        self._is_at_rest = True

    @property
    def is_open(self) -> bool:
        """True while its pipeline serves."""
        return self._pipeline is not None and self._pipeline.is_open

    @property
    def is_broken(self) -> bool:
        """True from the loss of a stage until `lose`."""
        return self._pipeline is not None and not self._pipeline.is_open

    @property
    def num_sequences(self) -> int:
        """Sequences that run or wait here."""
        return self.scheduler.num_running + self.scheduler.num_waiting

    @property
    def is_idle(self) -> bool:
        """True when all sequences have ended, and the stages know it."""
        if self._pipeline is None:
            return self.num_sequences == 0
        return self.micro_batches.is_empty and not self.scheduler.has_work

    def open(self, pipeline: Pipeline) -> None:
        """Runs on this pipeline from now on, whose slots are empty."""
        assert self._pipeline is None, "the lane has a pipeline"
        self._pipeline = pipeline

    def lose(self) -> list[Sequence]:
        """Gives up a broken pipeline and all that was in flight.

        Returns:
            The sequences that ran; they wait again, and are computed again from their tokens.
        """
        assert self._pipeline is not None, "the lane has a pipeline"
        blamed, self._pipeline = self._pipeline.blamed, None
        self.micro_batches.abandon()
        self.pace.interrupt()
        return self.scheduler.preempt_all(blamed)

    def fill(self, requests: Mapping[str, LiveRequest]) -> None:
        """Sends micro-batches off until as many are in flight as the load deserves."""
        while self._pipeline is not None and self._pipeline.is_open:
            started_ns = time.perf_counter_ns()
            load = self.scheduler.load()
            plan = self.pace.plan(
                load,
                num_in_flight=self.micro_batches.num_computing,
                num_prefill_only=self.micro_batches.num_prefill_only,
            )
            output = plan and self.scheduler.schedule(plan.budget)
            if plan is None or output is None:
                return
            self._is_at_rest = False
            now_ns = time.perf_counter_ns()
            for piece in output.slices:
                live = requests[piece.request_id]
                live.first_step_ns = live.first_step_ns or now_ns
            wanted = logits_requests(output, requests)
            micro_batch = MicroBatch(
                output=output,
                load=load,
                depth=plan.depth,
                started_ns=started_ns,
                scheduled_ns=time.perf_counter_ns(),
            )
            self.micro_batches.start(micro_batch, wanted, self._pipeline)

    def rest(self) -> None:
        """Checks that the books balance, once each time that the lane has become idle."""
        if not self._is_at_rest:
            self._is_at_rest = True
            self.scheduler.check_integrity()
            self.pace.interrupt()
