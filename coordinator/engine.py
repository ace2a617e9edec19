"""The loop: admit, fill the pipeline, take in what comes back, emit.

One task owns the scheduler and every request; others only submit and cancel, from the same event
loop, and micro-batches report to it. When a stage is lost, all sequences go back to the waiting
queue with the tokens they have, and go on by recomputation once the stage is back.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from coordinator.admission import Admission
from coordinator.batch_sampling import logits_requests, sample
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.sequence import Sequence
from coordinator.core.status import EngineStatus
from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.engine_status import EngineCounters, engine_status, stage_statuses
from coordinator.landed_step import LandedStep
from coordinator.live_request import LiveRequest
from coordinator.micro_batches import MicroBatch, MicroBatches
from coordinator.pipeline.pipeline import Pipeline
from coordinator.request_stream import RequestStream
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.scheduler import Scheduler
from coordinator.step_watch import StepHub, StepWatch
from coordinator.text.tokenizer import Tokenizer
from protos.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    KvFullError,
    StagecoachError,
    StaleStateError,
    UnavailableError,
)

MAX_REPLAYS = 2
"""Times that a request is computed again after it was in flight when something broke. Bounded, so
that a request that breaks a stage each time cannot do so forever."""

OUTAGE_PAUSE_S = 1.0
"""Pause between attempts to bring the pipeline back, once requests no longer wait for it."""

_log = logging.getLogger(__name__)


class Engine:
    """Generates tokens for many requests at once over one pipeline.

    Args:
        pipeline: Connected; the engine closes it.
        scheduler: Empty, with the limits of the pipeline's topology.
        pace: Says how many micro-batches are in flight.
        admission: Validates requests.
        tokenizer: The model's; None when it serves token ids only.
        stage_wait_s: How long requests wait for a lost stage before they fail.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        scheduler: Scheduler,
        pace: Pace,
        admission: Admission,
        tokenizer: Tokenizer | None,
        stage_wait_s: float,
    ) -> None:
        """Keeps its parts; `start` starts it."""
        self.tokenizer = tokenizer
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._pace = pace
        self._admission = admission
        self._stage_wait_s = stage_wait_s
        self._requests: dict[str, LiveRequest] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        pipeline.on_lost(self._wake.set)
        self._micro_batches = MicroBatches(pipeline, on_landed=self._wake.set)
        self._unsent: list[LandedStep] = []
        self._steps = StepHub()
        self._counters = EngineCounters()
        self._is_draining = False
        self._outage: str | None = None
        """Why no request is taken at present."""

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Turns a prompt into token ids; see `Admission.tokenize`."""
        return self._admission.tokenize(prompt)

    def submit(self, spec: RequestSpec) -> RequestStream:
        """Validates a request and queues it.

        Returns:
            Its events. The caller reads them to the end or cancels the stream.

        Raises:
            UnavailableError: The engine is draining, or a stage has been lost for too long.
            InvalidArgumentError: The id is in use; or see `Admission.admit`.
            ContextLengthExceededError: Prompt and output cannot fit.
            QueueFullError: Too many requests wait.
        """
        if self._is_draining:
            raise UnavailableError("the coordinator is shutting down")
        if self._outage is not None:
            raise UnavailableError(self._outage)
        self._scheduler.check_room()
        if spec.request_id in self._requests:  # the scheduler forgets it before its end is sent
            raise InvalidArgumentError(
                f"request_id {spec.request_id!r} is in use", field="request_id"
            )
        request = self._admission.admit(spec)
        sequence = self._scheduler.add(request)
        request_id = request.request_id
        live = LiveRequest.of(
            sequence,
            topology=self._pipeline.topology,
            tokenizer=self.tokenizer,
            on_cancel=lambda: self._cancel(request_id),
        )
        self._requests[request_id] = live
        self._idle.clear()
        self._wake.set()
        _log.info("request %s: %d prompt tokens", request_id, sequence.num_prompt_tokens)
        return live.stream

    def watch_steps(self) -> StepWatch:
        """Tells what each micro-batch does from now on; the caller closes the watch.

        Raises:
            QueueFullError: Too many watch already.
        """
        return self._steps.watch(time.perf_counter_ns())

    def start(self) -> None:
        """Starts serving; call once, from the event loop that everything else is called from."""
        self._task = asyncio.create_task(self._run(), name="engine")

    async def wait_stopped(self) -> None:
        """Returns when the engine was closed.

        Raises:
            BaseException: A bug ended it.
        """
        await asyncio.wait({self._task})
        if not self._is_draining:
            self._task.result()

    async def wait_idle(self) -> None:
        """Returns once all requests have ended and every stage was told of their slots."""
        await self._idle.wait()

    async def close(self, grace_s: float) -> None:
        """Admits nothing more, lets requests finish within the grace time, fails the rest.

        Closes the pipeline, which frees every slot on every stage.
        """
        self._is_draining = True
        if self._requests:
            idle = asyncio.create_task(self.wait_idle())
            await asyncio.wait(
                {idle, self._task}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED
            )
            idle.cancel()
        for request_id in tuple(self._requests):
            self._fail(request_id, UnavailableError("the coordinator is shutting down"))
        self._steps.end(UnavailableError("the coordinator is shutting down"))
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._micro_batches.close()
        await self._pipeline.close()

    async def _run(self) -> None:
        """The loop; ends only by being cancelled, or by a bug, which fails every request."""
        try:
            await self._serve()
        except Exception:
            self._outage = "the engine stopped; see the coordinator's log"
            _log.exception("the engine stopped")
            for live in self._requests.values():  # past the scheduler, which may be what is broken
                live.stream.end(InternalError(self._outage))
            self._requests.clear()
            raise

    async def _serve(self) -> None:
        while True:
            if not self._pipeline.is_open:
                await self._emit()  # the wait may be long, and end all requests
                await self._recover()
            self._fill()
            await self._emit()
            if self._micro_batches.is_empty and not self._scheduler.has_work:
                self._scheduler.check_integrity()
                self._pace.interrupt()
                self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            for micro_batch in self._micro_batches.take_landed():
                self._land(micro_batch)

    def _fill(self) -> None:
        """Sends micro-batches off until as many are in flight as the load deserves."""
        while True:
            started_ns = time.perf_counter_ns()
            load = self._scheduler.load()
            plan = self._pace.plan(
                load,
                num_in_flight=self._micro_batches.num_computing,
                num_prefill_only=self._micro_batches.num_prefill_only,
            )
            output = plan and self._scheduler.schedule(plan.budget)
            if plan is None or output is None:
                return
            now_ns = time.monotonic_ns()
            for piece in output.slices:
                live = self._requests[piece.request_id]
                live.first_step_ns = live.first_step_ns or now_ns
            wanted = logits_requests(output, self._requests)
            micro_batch = MicroBatch(
                output=output,
                load=load,
                depth=plan.depth,
                started_ns=started_ns,
                scheduled_ns=time.perf_counter_ns(),
            )
            self._micro_batches.start(micro_batch, wanted)

    async def status(self) -> EngineStatus:
        """The state of the coordinator and of every stage."""
        return engine_status(
            topology=self._pipeline.topology,
            stages=await stage_statuses(self._pipeline),
            ready=self._pipeline.is_open and not self._is_draining,
            has_tokenizer=self.tokenizer is not None,
            scheduler=self._scheduler,
            counters=self._counters,
            now_s=time.monotonic(),
        )

    def _land(self, micro_batch: MicroBatch) -> None:
        """Takes in what became of a micro-batch."""
        result = micro_batch.result
        if isinstance(result, StepOutput):
            self._take_in(micro_batch, result)
        elif isinstance(result, StagecoachError):
            self._give_up(micro_batch.output, result)
        else:
            assert result is not None, "a micro-batch landed without a result"
            raise result

    def _take_in(self, micro_batch: MicroBatch, result: StepOutput) -> None:
        """Samples, and lets the scheduler go on; what clients get of it is sent later."""
        landed_ns = time.perf_counter_ns()
        output = micro_batch.output
        sampled, errors = sample(output, result, self._requests)
        for request_id, error in errors.items():
            self._fail(request_id, error)
        advanced = self._scheduler.update(output, sampled)
        step = LandedStep.of(
            micro_batch,
            result,
            [self._requests[sequence.request_id] for sequence in advanced],
            landed_ns=landed_ns,
        )
        for token in step.tokens:
            if token.reason is not None:
                self._scheduler.finish(token.live.request_id, token.reason)
        self._unsent.append(step)

    async def _emit(self) -> None:
        """Sends what was taken in, behind the next micro-batches."""
        if not self._unsent:
            return
        await asyncio.sleep(0)  # lets those go out that were just started
        steps, self._unsent = self._unsent, []
        for step in steps:
            sent = step.send(self._requests)
            if self._steps.is_watched:
                self._steps.publish(step.record(sent))
            for token in sent.last_tokens:
                assert token.reason is not None
                self._finish(token.live, token.reason)
            self._counters.throughput.add(len(step.tokens), time.monotonic())
            micro_batch = step.micro_batch
            self._pace.observe(
                micro_batch.output,
                depth=micro_batch.depth,
                load=micro_batch.load,
                stages=step.result.stage_timings,
                landed_ns=micro_batch.returned_ns,
            )

    def _give_up(self, output: SchedulerOutput, error: StagecoachError) -> None:
        """Replays what a stage could not run, or fails it; hits only this micro-batch."""
        if isinstance(error, UnavailableError | DeadlineExceededError):
            _log.warning("micro-batch %d was lost: %s", output.micro_batch_id, error)
            if self._pipeline.is_open:  # else `_serve` recovers, and all are replayed
                self._replay(self._scheduler.requeue(output), error)
        elif isinstance(error, KvFullError | StaleStateError):
            _log.warning("micro-batch %d is replayed: %s", output.micro_batch_id, error)
            gave_up = InternalError(f"given up after {MAX_REPLAYS} replays: {error.message}")
            self._replay(self._scheduler.requeue(output), gave_up)
        else:
            _log.error("micro-batch %d failed: %s", output.micro_batch_id, error)
            self._scheduler.requeue(output)
            for piece in output.slices:
                # Whatever a stage says, it is not the client's fault.
                self._fail(
                    piece.request_id,
                    InternalError(
                        f"request {piece.request_id} failed on a stage; see the coordinator's log"
                    ),
                )

    async def _recover(self) -> None:
        """Waits until every stage is back; what was running is computed again from its tokens."""
        self._micro_batches.abandon()
        self._pace.interrupt()
        self._replay(
            self._scheduler.preempt_all(), UnavailableError("a stage was lost again and again")
        )
        _log.warning("waiting for stages; %d requests are paused", len(self._requests))
        started = time.monotonic()
        while not self._pipeline.is_open:
            try:
                await self._pipeline.reconnect(self._stage_wait_s)
            except StagecoachError as error:
                self._outage = f"the pipeline is down: {error.message}"
                _log.error("%s", self._outage)
                for request_id in tuple(self._requests):
                    self._fail(request_id, UnavailableError(self._outage))
                await asyncio.sleep(OUTAGE_PAUSE_S)
        self._outage = None
        _log.warning("all stages are back after %.1f s", time.monotonic() - started)

    def _replay(self, sequences: Iterable[Sequence], error: StagecoachError) -> None:
        """Lets requests be computed again, or fails those that had their share of replays."""
        for sequence in sequences:
            if sequence.num_replays > MAX_REPLAYS:
                self._fail(sequence.request_id, error)

    def _cancel(self, request_id: str) -> None:
        live = self._requests.get(request_id)
        if live is not None:
            self._finish(live, FinishReason.ABORT)
            self._wake.set()

    def _finish(self, live: LiveRequest, reason: FinishReason) -> None:
        """Ends a request in good order."""
        live.end(reason, live.text.flush())
        self._forget(live.request_id, reason)

    def _fail(self, request_id: str, error: StagecoachError) -> None:
        """Ends a request with an error."""
        live = self._requests.get(request_id)
        if live is not None:
            live.stream.end(error)
            self._forget(request_id, FinishReason.ERROR)
            self._wake.set()

    def _forget(self, request_id: str, reason: FinishReason) -> None:
        live = self._requests.pop(request_id)
        self._scheduler.finish(request_id, reason)
        self._counters.num_finished += 1
        self._counters.num_preemptions += live.sequence.num_preemptions
        _log.info(
            "request %s ended: %s, %d tokens", request_id, reason.value, live.num_completion_tokens
        )
