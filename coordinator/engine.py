"""The loop: admit, fill the pipeline, take in what comes back, emit.

One task owns the scheduler and every request; others only submit and cancel, from the same event
loop, and micro-batches report to it. When a stage is lost, all sequences go back to the waiting
queue with the tokens they have, and go on by recomputation once the stage is back.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as ListLike
from contextlib import contextmanager

from coordinator.admission import Admission
from coordinator.batch_sampling import logits_requests, sample
from coordinator.compiling_stream import CompilingStream
from coordinator.constraint import GrammarCompiler, TokenConstraint
from coordinator.core.observation import EngineFigures
from coordinator.core.request import FinishReason, Request
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.sequence import Sequence
from coordinator.core.served_model import ServedModel
from coordinator.core.status import EngineStatus, StageState, StageStatus
from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.landed_step import LandedStep
from coordinator.live_request import LiveRequest
from coordinator.micro_batches import MicroBatch, MicroBatches
from coordinator.observer import EngineObserver, Observers
from coordinator.pipeline.pipeline import Pipeline
from coordinator.pipeline.topology import Topology
from coordinator.request_stream import RequestStream
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.scheduler import Scheduler
from coordinator.step_watch import StepHub, StepWatch
from coordinator.text.tokenizer import Tokenizer
from coordinator.throughput import ThroughputMeter
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
        grammars: Compiles the grammars of requests; the engine closes it.
        tokenizer: The model's; None when it serves token ids only.
        stage_wait_s: How long requests wait for a lost stage before they fail.
        observers: Told what happens.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        scheduler: Scheduler,
        pace: Pace,
        admission: Admission,
        grammars: GrammarCompiler,
        tokenizer: Tokenizer | None,
        stage_wait_s: float,
        observers: ListLike[EngineObserver] = (),
    ) -> None:
        """Keeps its parts; `start` starts it."""
        self.tokenizer = tokenizer
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._pace = pace
        self._admission = admission
        self._grammars = grammars
        self._stage_wait_s = stage_wait_s
        self._observers = Observers(observers)
        self._requests: dict[str, LiveRequest] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        pipeline.on_lost(self._wake.set)
        self._micro_batches = MicroBatches(pipeline, on_landed=self._wake.set)
        self._unsent: list[LandedStep] = []
        self._throughput = ThroughputMeter()
        self._steps = StepHub()
        self._num_finished = 0
        self._num_preemptions = 0
        self._is_draining = False
        self._outage: str | None = None
        """Why no request is taken at present."""

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def served_model(self) -> ServedModel:
        """What clients may know of the model."""
        topology = self._pipeline.topology
        return ServedModel(
            model_id=topology.model_id,
            vocab_size=topology.vocab_size,
            max_model_len=self._scheduler.config.max_request_tokens,
            has_tokenizer=self.tokenizer is not None,
            has_prefix_cache=self._scheduler.config.prefix_cache,
        )

    @property
    def is_ready(self) -> bool:
        """True while requests are served."""
        return self._pipeline.is_open and not self._is_draining

    @property
    def topology(self) -> Topology:
        """The stages as they were when the engine started."""
        return self._pipeline.topology

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Turns a prompt into token ids; see `Admission.tokenize`."""
        return self._admission.tokenize(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; empty without a tokenizer."""
        return b"" if self.tokenizer is None else self.tokenizer.token_bytes(token_id)

    def detokenize(self, token_ids: Collection[int]) -> str:
        """Turns token ids into text; see `Admission.detokenize`."""
        return self._admission.detokenize(token_ids)

    def submit(self, spec: RequestSpec) -> RequestStream | CompilingStream:
        """Validates a request and queues it; one with a grammar once that is compiled.

        Returns:
            Its events. The caller reads them to the end or cancels the stream. What is wrong with
            a grammar is raised while the first event is read.

        Raises:
            UnavailableError: The engine is draining, or a stage has been lost for too long.
            InvalidArgumentError: The id is in use; or see `Admission.admit`.
            ContextLengthExceededError: Prompt and output cannot fit.
            QueueFullError: Too many requests wait.
        """
        with self._refusals_told():
            self._check_open()
            self._check_new(spec.request_id)
            request = self._admission.admit(spec)
            if spec.grammar is None:
                return self._start_request(request, None)
            self._grammars.check_model(spec.grammar)
        grammar = spec.grammar

        async def compiled() -> TokenConstraint:
            with self._refusals_told():
                return await self._grammars.compile(grammar, ignore_eos=spec.ignore_eos)

        def start(constraint: TokenConstraint) -> RequestStream:
            with self._refusals_told():
                return self._start_request(request, constraint)

        return CompilingStream(compiled, start)

    @contextmanager
    def _refusals_told(self) -> Iterator[None]:
        """Tells the observers of a request that is not taken."""
        try:
            yield
        except StagecoachError as error:
            self._observers.request_refused(error)
            raise

    def _start_request(self, request: Request, constraint: TokenConstraint | None) -> RequestStream:
        """Queues a valid request."""
        self._check_open()
        self._check_new(request.request_id)
        sequence = self._scheduler.add(request)
        request_id = request.request_id
        live = LiveRequest.of(
            sequence,
            topology=self._pipeline.topology,
            tokenizer=self.tokenizer,
            constraint=constraint,
            on_cancel=lambda: self._cancel(request_id),
        )
        self._requests[request_id] = live
        self._idle.clear()
        self._wake.set()
        self._observers.request_accepted(request_id, sequence.num_prompt_tokens)
        return live.stream

    def _check_open(self) -> None:
        if self._is_draining:
            raise UnavailableError("the coordinator is shutting down")
        if self._outage is not None:
            raise UnavailableError(self._outage)
        self._scheduler.check_room()

    def _check_new(self, request_id: str | None) -> None:
        if request_id in self._requests:  # the scheduler forgets it before its end is sent
            raise InvalidArgumentError(f"request_id {request_id!r} is in use", field="request_id")

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
        self._grammars.close()

    async def _run(self) -> None:
        """The loop; ends only by being cancelled, or by a bug, which fails every request."""
        try:
            await self._serve()
        except Exception:
            self._outage = "the engine stopped; see the coordinator's log"
            _log.exception("the engine stopped")
            error = InternalError(self._outage)
            for live in self._requests.values():  # past the scheduler, which may be what is broken
                live.stream.end(error)
                self._observers.request_ended(live.as_ended(FinishReason.ERROR, error))
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
        scheduler, topology = self._scheduler, self._pipeline.topology
        infos = await self._pipeline.stage_infos()
        stages = tuple(
            StageStatus(
                index=index,
                address=address,
                state=StageState.READY if is_open else StageState.LOST,
                info=info or known,
            )
            for index, (address, is_open, info, known) in enumerate(
                zip(
                    topology.addresses,
                    self._pipeline.open_stages,
                    infos,
                    topology.infos,
                    strict=True,
                )
            )
        )
        return EngineStatus(
            model_id=topology.model_id,
            ready=self.is_ready,
            stages=stages,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            max_num_seqs=scheduler.config.max_num_seqs,
            num_kv_blocks=scheduler.config.num_kv_blocks,
            num_free_kv_blocks=scheduler.num_free_kv_blocks,
            num_cached_kv_blocks=scheduler.num_cached_kv_blocks,
            max_model_len=scheduler.config.max_request_tokens,
            num_finished=self._num_finished,
            num_generated_tokens=self._throughput.total,
            num_preemptions=self._num_preemptions,
            num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            tokens_per_second=self._throughput.tokens_per_second(time.monotonic()),
            has_tokenizer=self.tokenizer is not None,
        )

    def figures(self) -> EngineFigures:
        """The state of the engine now, without asking a stage. Any thread."""
        scheduler = self._scheduler
        return EngineFigures(
            is_ready=self._pipeline.is_open and not self._is_draining and self._outage is None,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_micro_batches=self._micro_batches.num_in_flight,
            num_kv_blocks=scheduler.config.num_kv_blocks,
            num_free_kv_blocks=scheduler.num_free_kv_blocks,
            num_cached_kv_blocks=scheduler.num_cached_kv_blocks,
            num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_replays=scheduler.num_replays,
            open_stages=self._pipeline.open_stages,
            stage_losses=self._pipeline.stage_losses,
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
        sampled = sample(output, result, self._requests)
        for request_id, error in sampled.errors.items():
            self._fail(request_id, error)
        advanced = self._scheduler.update(output, sampled.token_ids)
        step = LandedStep.of(
            micro_batch,
            result,
            [self._requests[sequence.request_id] for sequence in advanced],
            logprobs=sampled.logprobs,
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
            if self._observers.are_present:
                self._observers.step_ended(step.summary(sent))
            for token in sent.last_tokens:
                assert token.reason is not None
                self._finish(token.live, token.reason)
            self._throughput.add(len(step.tokens), time.monotonic())
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
            self._log_failure(logging.WARNING, "micro-batch lost", output, error)
            if self._pipeline.is_open:  # else `_serve` recovers, and all are replayed
                self._replay(self._scheduler.requeue(output), error)
        elif isinstance(error, KvFullError | StaleStateError):
            self._log_failure(logging.WARNING, "micro-batch replayed", output, error)
            gave_up = InternalError(f"given up after {MAX_REPLAYS} replays: {error.message}")
            self._replay(self._scheduler.requeue(output), gave_up)
        else:
            self._log_failure(logging.ERROR, "micro-batch failed", output, error)
            self._scheduler.requeue(output)
            for piece in output.slices:
                # Whatever a stage says, it is not the client's fault.
                self._fail(
                    piece.request_id,
                    InternalError(
                        f"request {piece.request_id} failed on a stage; see the coordinator's log"
                    ),
                )

    @staticmethod
    def _log_failure(
        level: int, event: str, output: SchedulerOutput, error: StagecoachError
    ) -> None:
        _log.log(
            level,
            event,
            extra={
                "micro_batch_id": output.micro_batch_id,
                "request_ids": [piece.request_id for piece in output.slices],
                "error": error.message,
            },
        )

    async def _recover(self) -> None:
        """Waits until every stage is back; what was running is computed again from its tokens."""
        self._micro_batches.abandon()
        self._pace.interrupt()
        self._replay(
            self._scheduler.preempt_all(), UnavailableError("a stage was lost again and again")
        )
        _log.warning("waiting for stages", extra={"num_paused_requests": len(self._requests)})
        started = time.monotonic()
        while not self._pipeline.is_open:
            try:
                await self._pipeline.reconnect(self._stage_wait_s)
            except StagecoachError as error:
                self._outage = f"the pipeline is down: {error.message}"
                _log.error("the pipeline is down", extra={"error": error.message})
                for request_id in tuple(self._requests):
                    self._fail(request_id, UnavailableError(self._outage))
                await asyncio.sleep(OUTAGE_PAUSE_S)
        self._outage = None
        waited_s = round(time.monotonic() - started, 3)
        _log.warning("all stages are back", extra={"waited_s": waited_s})

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
            self._forget(request_id, FinishReason.ERROR, error)
            self._wake.set()

    def _forget(
        self, request_id: str, reason: FinishReason, error: StagecoachError | None = None
    ) -> None:
        live = self._requests.pop(request_id)
        self._scheduler.finish(request_id, reason)
        self._num_finished += 1
        self._num_preemptions += live.sequence.num_preemptions
        self._observers.request_ended(live.as_ended(reason, error))
