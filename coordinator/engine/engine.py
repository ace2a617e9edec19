"""The loop: fill the lanes, send what landed before, take in what comes back.

One task owns the lanes and every request. Other tasks of the same event loop submit and cancel, and
micro-batches report to the engine's task. When a stage is lost, the sequences of its pipeline go
back to the waiting queue with the tokens they have. Their KV is recomputed on another pipeline if
there is one, else once the stage is back.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from collections.abc import Sequence as ListLike
from itertools import count

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.core.drafter import MakeDrafter
from coordinator.core.observation import EngineFigures
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.served_model import ServedModel
from coordinator.engine.admission import Admission
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.engine_status import EngineCounters, engine_figures, engine_status
from coordinator.engine.intake import Intake
from coordinator.engine.landed_step import LandedStep
from coordinator.engine.lane import Failure, Lane
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.live_requests import LiveRequests
from coordinator.engine.mask_waits import MaskWaits
from coordinator.engine.outage import Outage
from coordinator.engine.pipeline_runner import PipelineRunner
from coordinator.engine.readiness import Readiness
from coordinator.engine.request_stream import RequestStream
from coordinator.observe.observer import EngineObserver, Observers
from coordinator.observe.step_watch import StepHub, StepWatch
from coordinator.pipeline.stage_pool import StagePool
from coordinator.pipeline.topology import Topology
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.scheduler import Scheduler
from coordinator.text.conversations import Conversations
from coordinator.text.text_workers import TextWorkers
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_info import TokenizerInfo
from stagecoach.contract.cluster_status import ModelStatus
from stagecoach.contract.errors import UnavailableError

_log = logging.getLogger(__name__)


class Engine:
    """Generates tokens for many requests at once over the pipelines that can be formed.

    Args:
        pool: Connected and not started; the engine closes it.
        topology: The stages.
        names: What requests may call the model, the one that answers show first.
        limits: Most sequences, tokens and KV blocks of each pipeline's scheduler.
        num_micro_batches: Micro-batches in flight in each pipeline; None measures how many are
            best.
        admission: Validates requests.
        grammars: Compiles the grammars of requests; the engine closes it.
        tokenizer: The model's; None when it serves token ids only.
        tokenizer_info: What clients may know of it.
        text: Workers of the tokenizer; the engine starts and closes them.
        max_num_waiting: Requests that wait, beyond which none is taken.
        stage_wait_s: How long requests wait for a lost stage before they fail.
        observers: Told what happens.
        policy: The order of the requests on every pipeline; None for first come, first served.
        max_thinking_tokens: Tokens after which thinking is ended; None: never.
        make_drafter: Makes what guesses tokens of a request; None: no token is guessed.
    """

    def __init__(
        self,
        *,
        pool: StagePool,
        topology: Topology,
        names: tuple[str, ...],
        limits: SchedulerConfig,
        num_micro_batches: int | None,
        admission: Admission,
        grammars: GrammarCompiler,
        tokenizer: Tokenizer | None,
        tokenizer_info: TokenizerInfo | None,
        text: TextWorkers | None,
        max_num_waiting: int,
        stage_wait_s: float,
        observers: ListLike[EngineObserver] = (),
        policy: Policy | None = None,
        max_thinking_tokens: int | None = None,
        make_drafter: MakeDrafter | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._tokenizer_info = tokenizer_info
        self._pool = pool
        self._topology = topology
        self._names = names
        self._limits = limits
        self._admission = admission
        self._grammars = grammars
        self._text = text
        self._outage = Outage(stage_wait_s)
        self._observers = Observers(observers)
        self._counters = EngineCounters()
        self._wake = asyncio.Event()
        self._by_id: dict[str, LiveRequest] = {}
        self._masks = MaskWaits(self._by_id, self._wake)
        self._lanes = self._create_lanes(num_micro_batches, policy)
        self._dispatcher = Dispatcher(self._lanes, max_num_waiting=max_num_waiting)
        self._requests = LiveRequests(
            self._by_id,
            dispatcher=self._dispatcher,
            counters=self._counters,
            observers=self._observers,
            wake=self._wake,
        )
        self._intake = Intake(
            admission=admission,
            grammars=grammars,
            outage=self._outage,
            dispatcher=self._dispatcher,
            requests=self._requests,
            observers=self._observers,
            limits=limits,
            num_stages=len(topology.infos),
            vocab_size=topology.vocab_size,
            conversations=Conversations(tokenizer, max_thinking_tokens, text),
            make_drafter=make_drafter,
        )
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: set[asyncio.Task[None]] = set()
        """A task for each micro-batch that is on its way."""
        self._unsent: list[LandedStep] = []
        self._endings: list[tuple[LiveRequest, FinishReason]] = []
        """Requests that turned out to be complete; told after their last token."""
        self._steps = StepHub()
        self._is_draining = False
        self._has_news = False
        """True when pipelines may have come or gone."""
        self._readiness = Readiness()

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._by_id)

    @property
    def served_model(self) -> ServedModel:
        """What clients may know of the model."""
        return ServedModel(
            model_id=self._topology.model_id,
            names=self._names,
            vocab_size=self._topology.vocab_size,
            max_model_len=self._limits.max_request_tokens,
            has_tokenizer=self.tokenizer is not None,
            marks_thinking=self.tokenizer is not None
            and self.tokenizer.dialect.thinking is not None,
            tokenizer_info=self._tokenizer_info,
            template_variables=frozenset()
            if self.tokenizer is None
            else self.tokenizer.template_variables,
        )

    @property
    def is_ready(self) -> bool:
        """True while requests are served."""
        return self._readiness.is_ready

    @property
    def problem(self) -> str:
        """Why requests are not served at present; empty while they are."""
        if self.is_ready:
            return ""
        return "it is shutting down" if self._is_draining else self._pool.problem

    async def wait_ready(self, *, ready: bool) -> None:
        """Returns when `is_ready` has become so."""
        await self._readiness.wait(ready)

    async def tokenize(self, prompt: Prompt) -> ListLike[int]:
        """Turns a prompt into token ids; see `Admission.tokenize`."""
        return await self._admission.tokenize(prompt)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; empty without a tokenizer."""
        return b"" if self.tokenizer is None else self.tokenizer.token_bytes(token_id)

    async def detokenize(self, token_ids: ListLike[int]) -> str:
        """Turns token ids into text; see `Admission.detokenize`."""
        return await self._admission.detokenize(token_ids)

    async def submit(self, spec: RequestSpec) -> RequestStream:
        """Validates a request and queues it.

        Takes no time for token ids and short texts. A long text and a conversation are tokenized,
        and a grammar is compiled, before it returns; to cancel the call is to end that work.

        Returns:
            Its events. The caller reads them to the end or cancels the stream.

        Raises:
            UnavailableError: The engine is draining, or a stage has been lost for too long.
            InvalidArgumentError: The id is in use; or see `Admission` and `GrammarCompiler`.
            ContextLengthExceededError: Prompt and output cannot fit.
            QueueFullError: Too many requests wait, for a step, for a text or for a grammar.
            DeadlineExceededError: To tokenize or to compile took too long.
        """
        live = await self._intake.submit(spec)
        self._idle.clear()
        self._wake.set()
        return live.stream

    def watch_steps(self) -> StepWatch:
        """Tells what each micro-batch does from now on; the caller closes the watch.

        Raises:
            QueueFullError: Too many watch already.
        """
        return self._steps.watch(time.perf_counter_ns())

    def start(self) -> None:
        """Starts serving; call once, from the event loop that everything else is called from."""
        self._pool.start(self._hear)
        self._tend()
        self._task = asyncio.create_task(self._run(), name="engine")
        if self._text is not None:
            self._text.start()

    def read_vocabulary(self) -> None:
        """Makes the engine ready for grammars in the background, before the first is sent."""
        if self.tokenizer is not None:
            self._grammars.start_soon()

    async def wait_stopped(self) -> None:
        """Returns when the engine was closed.

        Raises:
            BaseException: A bug ended it.
        """
        await asyncio.wait({self._task})
        if not self._is_draining:
            self._task.result()

    async def wait_idle(self) -> None:
        """Returns once all requests have ended and every stage was told of their slots.

        Closing the engine tells them, too.
        """
        await self._idle.wait()

    async def close(self, grace_s: float) -> None:
        """Admits nothing more, lets requests finish within the grace time, fails the rest.

        Closes the pipeline, which frees every slot on every stage.
        """
        self._is_draining = True
        self._intake.close()
        self._readiness.set(False)
        if self._by_id:
            idle = asyncio.create_task(self.wait_idle())
            await asyncio.wait(
                {idle, self._task}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED
            )
            idle.cancel()
        self._requests.fail_all(UnavailableError("the coordinator is shutting down"))
        self._steps.end(UnavailableError("the coordinator is shutting down"))
        self._task.cancel()
        await asyncio.wait({self._task})
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._pool.close()
        self._idle.set()
        await self._grammars.close()
        if self._text is not None:
            await self._text.close()

    async def _run(self) -> None:
        """The loop; ends only by being cancelled, or by a bug, which fails every request."""
        try:
            await self._serve()
        except Exception:  # a bug; nobody may wait for an engine that does not run
            stopped = self._outage.end()
            self._readiness.set(False)
            _log.exception("the engine stopped")
            self._requests.abandon(stopped)
            raise

    async def _serve(self) -> None:
        while True:
            if self._has_news:
                await self._send()  # before requests are moved, or fail
                self._tend()
            await self._masks.settle()
            self._let_go()
            for lane in self._lanes:
                lane.fill()
            await self._send()
            for lane in self._lanes:
                lane.rest()
            if not self._by_id and all(lane.is_idle for lane in self._lanes):
                self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            for lane in self._lanes:
                landed = await lane.land()
                self._unsent += landed.steps
                self._fail(landed.failures)
            self._dispatcher.spread()

    def _hear(self) -> None:
        self._has_news = True
        self._wake.set()

    def _tend(self) -> None:
        """Gives up pipelines that lost a stage, serves those that can be formed, or waits."""
        self._has_news = False
        for lane in self._lanes:
            if lane.is_broken:
                self._fail(lane.lose())
        for pipeline in self._pool.form():
            self._lanes[pipeline.index].open(PipelineRunner(pipeline, self._running))
            facts = {"pipeline": pipeline.index, "stages": list(pipeline.addresses)}
            _log.info("pipeline formed", extra=facts)
        is_open = any(lane.is_open for lane in self._lanes)
        if is_open:
            self._outage.clear()
            self._dispatcher.spread()
        elif (
            self._outage.begin(self._hear, num_requests=self.num_requests) or self._pool.is_hopeless
        ):
            self._requests.fail_all(self._outage.fail(self._pool.problem))
            self._wake.set()
        self._readiness.set(is_open and not self._is_draining)

    async def status(self) -> ModelStatus:
        """The state of the model and of every stage."""
        return engine_status(
            topology=self._topology,
            names=self._names,
            stages=await self._pool.statuses(),
            ready=self.is_ready,
            problem=self.problem,
            has_tokenizer=self.tokenizer is not None,
            lanes=self._lanes,
            limits=self._limits,
            counters=self._counters,
            now_s=time.monotonic(),
        )

    def figures(self) -> EngineFigures:
        """The state of the engine now, without asking a stage. Any thread."""
        return engine_figures(
            is_ready=self.is_ready,
            lanes=self._lanes,
            limits=self._limits,
            stages=self._pool.stage_figures(),
        )

    def _let_go(self) -> None:
        """Lets held sequences go on, or ends them, once it is known what may follow."""
        for live in self._masks.take_ready():
            reason = live.finish_reason
            if reason is None:
                live.sequence.is_held = False
            elif live.sequence.finish_reason is None:  # else its last token is on its way
                self._dispatcher.stop(live.sequence, reason)
                self._endings.append((live, reason))

    async def _send(self) -> None:
        """Sends what was taken in, behind the next micro-batches."""
        if not self._unsent and not self._endings:
            return
        await asyncio.sleep(0)  # lets those go out that were just started
        steps, self._unsent = self._unsent, []
        for step in steps:
            sent = step.send(self._by_id)
            if self._steps.is_watched:
                self._steps.publish(step.record(sent))
            if self._observers.hear_steps:
                self._observers.step_ended(step.summary(sent))
            for token in sent.last_tokens:
                assert token.reason is not None
                self._requests.finish(token.live, token.reason)
            self._counters.throughput.add(len(step.tokens), time.monotonic())
        for lane in self._lanes:
            lane.learn()
        endings, self._endings = self._endings, []
        for live, reason in endings:
            self._requests.finish(live, reason)

    def _fail(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self._requests.fail(failure.live, failure.error)

    def _create_lanes(
        self, num_micro_batches: int | None, policy: Policy | None
    ) -> tuple[Lane, ...]:
        """Creates a lane for each pipeline that there can be.

        The ids of the micro-batches of all lanes are different.
        """
        micro_batch_ids = count()
        return tuple(
            Lane(
                Scheduler(self._limits, policy=policy, micro_batch_ids=micro_batch_ids),
                Pace(
                    num_stages=len(self._topology.infos),
                    max_num_batched_tokens=self._limits.max_num_batched_tokens,
                    depth=num_micro_batches,
                ),
                requests=self._by_id,
                masks=self._masks,
                on_landed=self._wake.set,
            )
            for _ in range(self._pool.max_num_pipelines)
        )
