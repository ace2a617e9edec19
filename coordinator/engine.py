"""The loop: admit, schedule, run, sample, update, emit.

One task owns the scheduler and every request; others only submit and cancel, from the same event
loop. When a stage is lost, all sequences go back to the waiting queue with the tokens they have,
and go on by recomputation once the stage is back.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

import numpy as np

from coordinator.admission import Admission
from coordinator.core.events import Accepted
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.sequence import Sequence
from coordinator.core.status import EngineStatus, StageState, StageStatus
from coordinator.core.step import LogitsRequest, SchedulerOutput, StageTimings, StepOutput
from coordinator.core.step_record import StepInstants, StepRecord
from coordinator.live_request import NUM_OWN_TIMES, LiveRequest, step_times
from coordinator.pipeline.pipeline import Pipeline
from coordinator.request_stream import RequestStream
from coordinator.sampling.token_sampler import TokenSampler
from coordinator.scheduler.scheduler import Scheduler
from coordinator.step_watch import StepHub, StepWatch
from coordinator.text.output_text import OutputText
from coordinator.text.tokenizer import Tokenizer
from coordinator.throughput import ThroughputMeter
from protos.errors import (
    DeadlineExceededError,
    InternalError,
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
        admission: Validates requests.
        tokenizer: The model's; None when it serves token ids only.
        stage_wait_s: How long requests wait for a lost stage before they fail.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        scheduler: Scheduler,
        admission: Admission,
        tokenizer: Tokenizer | None,
        stage_wait_s: float,
    ) -> None:
        """Keeps its parts; `start` starts it."""
        self.tokenizer = tokenizer
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._admission = admission
        self._stage_wait_s = stage_wait_s
        self._requests: dict[str, LiveRequest] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        pipeline.on_lost(self._wake.set)
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

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Turns a prompt into token ids; see `Admission.tokenize`."""
        return self._admission.tokenize(prompt)

    def submit(self, spec: RequestSpec) -> RequestStream:
        """Validates a request and queues it.

        Returns:
            Its events. The caller reads them to the end or cancels the stream.

        Raises:
            UnavailableError: The engine is draining, or a stage has been lost for too long.
            InvalidArgumentError: See `Admission.admit`.
            ContextLengthExceededError: Prompt and output cannot fit.
            QueueFullError: Too many requests wait.
        """
        if self._is_draining:
            raise UnavailableError("the coordinator is shutting down")
        if self._outage is not None:
            raise UnavailableError(self._outage)
        self._scheduler.check_room()
        request = self._admission.admit(spec)
        sequence = self._scheduler.add(request)
        request_id = request.request_id
        accepted = Accepted(request_id=request_id, num_prompt_tokens=sequence.num_prompt_tokens)
        topology = self._pipeline.topology
        num_times = NUM_OWN_TIMES + len(topology.infos) * len(StageTimings._fields)
        live = LiveRequest(
            request=request,
            sequence=sequence,
            sampler=TokenSampler(
                request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                vocab_size=topology.vocab_size,
            ),
            text=OutputText(self.tokenizer, request.stop),
            stream=RequestStream(accepted, on_cancel=lambda: self._cancel(request_id)),
            times=np.zeros(num_times, dtype=np.int64),
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
        await self._pipeline.close()

    async def _run(self) -> None:
        """The loop; ends only by being cancelled, or by a bug, which fails every request."""
        try:
            await self._serve()
        except Exception:
            self._outage = "the engine stopped; see the coordinator's log"
            for request_id in tuple(self._requests):
                self._fail(request_id, InternalError(self._outage))
            _log.exception("the engine stopped")
            raise

    async def _serve(self) -> None:
        while True:
            if not self._pipeline.is_open:
                await self._recover()
            started_ns = time.perf_counter_ns()
            output = self._scheduler.schedule()
            if output is not None:
                await self._step(output, started_ns)
                continue
            if not self._scheduler.has_work:
                self._scheduler.check_integrity()
                self._idle.set()
            self._wake.clear()
            await self._wake.wait()

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
            ready=self._pipeline.is_open and not self._is_draining,
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

    async def _step(self, output: SchedulerOutput, started_ns: int) -> None:
        """Runs one micro-batch and takes in what became of it."""
        wanted = self._logits_requests(output)
        now_ns = time.monotonic_ns()
        for piece in output.slices:
            live = self._requests[piece.request_id]
            live.first_step_ns = live.first_step_ns or now_ns
        scheduled_ns = time.perf_counter_ns()
        try:
            step = await self._pipeline.run(output, wanted)
        except (UnavailableError, DeadlineExceededError) as error:
            _log.warning("micro-batch %d was lost: %s", output.micro_batch_id, error)
            if self._pipeline.is_open:  # else `_serve` recovers, and all are replayed
                self._replay(self._scheduler.requeue(output), error)
            return
        except (KvFullError, StaleStateError) as error:
            _log.warning("micro-batch %d is replayed: %s", output.micro_batch_id, error)
            gave_up = InternalError(f"given up after {MAX_REPLAYS} replays: {error.message}")
            self._replay(self._scheduler.requeue(output), gave_up)
            return
        except StagecoachError as error:
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
            return
        self._postprocess(output, step, scheduled_ns - started_ns, started_ns)

    def _logits_requests(self, output: SchedulerOutput) -> list[LogitsRequest]:
        """What the samplers need: the last row of every slice that samples."""
        wanted = []
        row = 0
        for piece in output.slices:
            row += len(piece.token_ids)
            if piece.samples:
                sampler = self._requests[piece.request_id].sampler
                wanted.append(sampler.logits_request(row - 1))
        return wanted

    def _postprocess(
        self, output: SchedulerOutput, step: StepOutput, schedule_ns: int, started_ns: int
    ) -> None:
        """Samples, updates the scheduler, sends tokens, ends what is done."""
        returned_ns = time.perf_counter_ns()
        advanced = self._scheduler.update(output, self._sample(output, step))
        sampled_ns = time.perf_counter_ns()
        ended: list[tuple[LiveRequest, FinishReason]] = []
        for sequence in advanced:
            live = self._requests[sequence.request_id]
            if (reason := _take_token(live)) is not None:
                ended.append((live, reason))
        ended_ns = time.perf_counter_ns()
        times = step_times(
            schedule_ns=schedule_ns,
            sample_ns=sampled_ns - returned_ns,
            detokenize_ns=ended_ns - sampled_ns,
            step_ns=ended_ns - started_ns,
            stages=step.stage_timings,
        )
        for piece in output.slices:
            if (participant := self._requests.get(piece.request_id)) is not None:
                participant.add_step(times)
        self._throughput.add(len(advanced), time.monotonic())
        if self._steps.is_watched:
            instants = StepInstants(
                started_ns, started_ns + schedule_ns, returned_ns, sampled_ns, sampled_ns, ended_ns
            )
            self._steps.publish(StepRecord.of(output, step, instants))
        for live, reason in ended:
            self._finish(live, reason)

    def _sample(self, output: SchedulerOutput, step: StepOutput) -> dict[str, int]:
        """Next tokens by request id; a request whose logits are unusable fails alone."""
        rows = {row.row: row for row in step.logits}
        sampled: dict[str, int] = {}
        row = 0
        for piece in output.slices:
            row += len(piece.token_ids)
            live = self._requests.get(piece.request_id)
            if not piece.samples or live is None:
                continue
            try:
                sampled[piece.request_id] = live.sampler.sample(rows[row - 1])
            except InternalError as error:
                self._fail(piece.request_id, error)
        return sampled

    async def _recover(self) -> None:
        """Waits until every stage is back; what was running is computed again from its tokens."""
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
        self._forget(live.request.request_id, reason)

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
        self._num_finished += 1
        self._num_preemptions += live.sequence.num_preemptions
        _log.info(
            "request %s ended: %s, %d tokens", request_id, reason.value, live.num_completion_tokens
        )


def _take_token(live: LiveRequest) -> FinishReason | None:
    """Turns the newest token of a request into text and sends it; says whether it was the last."""
    token_id = live.sequence.output_token_ids[-1]
    live.sampler.append(token_id)
    if token_id in live.request.stop_token_ids:
        return FinishReason.STOP
    delta = live.text.push(token_id)
    live.emit(token_id, delta.text)
    if delta.stopped:
        return FinishReason.STOP
    return FinishReason.LENGTH if live.sequence.at_max_tokens else None
