"""One pipeline and all that runs on it: the whole life of a step.

A step is scheduled and sent (`fill`), comes back, is sampled and taken in (`land`); what a failure
means for its requests is decided here too. Text and events are made elsewhere, behind the next
micro-batch.

A lane outlives its pipelines: when a stage is lost, its sequences wait again, here or elsewhere,
and the next pipeline that can be formed serves it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListLike
from functools import partial
from typing import NamedTuple, Protocol

from coordinator.core.limits import MAX_BLAMES
from coordinator.core.request import FinishReason
from coordinator.core.sequence import Sequence
from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.engine.batch_sampling import logits_requests, sample
from coordinator.engine.landed_step import LandedStep, take_tokens
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.mask_waits import MaskWaits
from coordinator.engine.micro_batches import MicroBatch, MicroBatches
from coordinator.engine.step_fault import StepFault
from coordinator.scheduler.pace import Pace
from coordinator.scheduler.scheduler import Scheduler
from stagecoach.contract.errors import InternalError, StagecoachError, UnavailableError
from stagecoach.contract.logits_request import LogitsRequest

_log = logging.getLogger(__name__)

OnLanded = Callable[[StepOutput | Exception], None]


class Runner(Protocol):
    """Takes micro-batches through one pipeline. Owned by the lane that it is handed to."""

    @property
    def is_open(self) -> bool:
        """True until a stage is lost."""
        ...

    @property
    def blamed(self) -> frozenset[int]:
        """Ids of the micro-batches that a stage may have been lost by."""
        ...

    def start(
        self, output: SchedulerOutput, logits: ListLike[LogitsRequest], on_landed: OnLanded
    ) -> None:
        """Sends a micro-batch, behind all that were started before; returns at once.

        Args:
            output: What to run.
            logits: Rows whose logits the sampler wants.
            on_landed: Called once, later, with what came back or what went wrong.
        """
        ...


class Failure(NamedTuple):
    """A request that cannot go on. Its sequence has ended; its client is still to be told."""

    live: LiveRequest
    error: StagecoachError


class Landed(NamedTuple):
    """What `Lane.land` took in."""

    steps: list[LandedStep]
    """Whose tokens are still to be sent."""
    failures: list[Failure]


class LaneFigures(NamedTuple):
    """What runs and waits on a lane, and what it counted from its start on."""

    num_running: int
    num_waiting: int
    num_micro_batches: int
    """On their way."""
    num_free_kv_blocks: int
    num_cached_kv_blocks: int
    """Free KV blocks that hold prefixes."""
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_preemptions: int
    num_replays: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int


class Lane:
    """Runs the sequences of one scheduler on one pipeline at a time. Owned by the engine's task.

    Its owner calls `fill`, sends what landed before, calls `learn`, and once a micro-batch is back
    `land`; over and over.

    Args:
        scheduler: Empty; nobody else uses it.
        pace: Says how many micro-batches are in flight.
        requests: All that have not ended, by id.
        masks: Holds sequences until it is known what may follow them.
        on_landed: Called each time that a micro-batch came back.
        clock: Nanoseconds of `time.perf_counter_ns`, or of a simulation.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pace: Pace,
        *,
        requests: Mapping[str, LiveRequest],
        masks: MaskWaits,
        on_landed: Callable[[], None],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._scheduler = scheduler
        self._pace = pace
        self._requests = requests
        self._masks = masks
        self._on_landed = on_landed
        self._clock = clock
        self._micro_batches = MicroBatches()
        self._runner: Runner | None = None
        self._is_at_rest = True
        self._unlearned: list[LandedStep] = []

    @property
    def is_open(self) -> bool:
        """True while its pipeline serves."""
        return self._runner is not None and self._runner.is_open

    @property
    def is_broken(self) -> bool:
        """True from the loss of a stage until `lose`."""
        return self._runner is not None and not self._runner.is_open

    @property
    def is_idle(self) -> bool:
        """True when all sequences have ended, and the stages know it."""
        if self._runner is None:
            return self.num_sequences == 0
        return self._micro_batches.is_empty and not self._scheduler.has_work

    @property
    def num_sequences(self) -> int:
        """Sequences that run or wait here."""
        return self._scheduler.num_running + self._scheduler.num_waiting

    @property
    def num_waiting(self) -> int:
        """Sequences that wait here, preempted ones included."""
        return self._scheduler.num_waiting

    @property
    def waiting(self) -> Iterable[Sequence]:
        """Sequences that wait on this lane, the most senior first."""
        return self._scheduler.waiting

    def figures(self) -> LaneFigures:
        """The state of the lane now. Any thread."""
        scheduler = self._scheduler
        return LaneFigures(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_micro_batches=self._micro_batches.num_in_flight,
            num_free_kv_blocks=scheduler.num_free_kv_blocks,
            num_cached_kv_blocks=scheduler.num_cached_kv_blocks,
            num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_replays=scheduler.num_replays,
            num_draft_tokens=scheduler.num_draft_tokens,
            num_accepted_draft_tokens=scheduler.num_accepted_draft_tokens,
        )

    def open(self, runner: Runner) -> None:
        """Runs on this pipeline from now on, whose slots are empty."""
        assert self._runner is None, "the lane has a pipeline"
        self._runner = runner

    def lose(self) -> list[Failure]:
        """Gives up a broken pipeline and all that was in flight.

        Nothing of it reaches a stage any more, and what comes back of it is dropped. The sequences
        that ran wait again, and are computed again from their tokens.

        Returns:
            Those that were computed again often enough.
        """
        assert self._runner is not None, "the lane has a pipeline"
        blamed, self._runner = self._runner.blamed, None
        self._micro_batches.abandon()
        self._pace.interrupt()
        waiting = self._scheduler.preempt_all(blamed)
        return self._given_up(waiting, UnavailableError("a stage was lost again and again"))

    def place(self, sequence: Sequence) -> None:
        """Lets a sequence that waits run here; see `Scheduler.adopt`."""
        self._scheduler.adopt(sequence)

    def take_back(self, sequence: Sequence) -> Sequence:
        """Gives up a sequence that waits here, for another lane; returns it."""
        return self._scheduler.hand_over(sequence)

    def take_back_all(self) -> list[Sequence]:
        """Gives up all that wait here, for other lanes; see `Scheduler.hand_over_all`."""
        return self._scheduler.hand_over_all()

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """Ends a sequence that is here; called once for each, unless the lane ends it."""
        is_first = self._scheduler.finish(request_id, reason)
        assert is_first, "the end of a sequence is told twice"

    def holds(self, request_id: str) -> bool:
        """True until a sequence that is here has ended and is in no micro-batch any more."""
        return self._scheduler.holds(request_id)

    def fits(self, sequence: Sequence) -> bool:
        """True when nothing waits here and a sequence that waits elsewhere could run at once."""
        return self._scheduler.fits(sequence)

    def num_prefix_tokens(self, sequence: Sequence) -> int:
        """Tokens of a waiting sequence that the prefix cache of this lane holds at present."""
        return self._scheduler.num_prefix_tokens(sequence)

    def fill(self) -> None:
        """Sends micro-batches off until as many are in flight as the load deserves."""
        while self._runner is not None and self._runner.is_open:
            started_ns = self._clock()
            load = self._scheduler.load()
            plan = self._pace.plan(
                load,
                num_in_flight=self._micro_batches.num_computing,
                num_prefill_only=self._micro_batches.num_prefill_only,
            )
            output = plan and self._scheduler.schedule(plan.budget)
            if plan is None or output is None:
                return
            self._is_at_rest = False
            participants = [self._requests[piece.request_id] for piece in output.slices]
            for live in participants:
                live.first_step_ns = live.first_step_ns or started_ns
            wanted = logits_requests(output, self._requests)
            micro_batch = MicroBatch(
                output=output,
                participants=participants,
                load=load,
                depth=plan.depth,
                started_ns=started_ns,
                scheduled_ns=self._clock(),
            )
            self._micro_batches.start(micro_batch)
            self._runner.start(output, wanted, partial(self._hear, micro_batch))

    async def land(self) -> Landed:
        """Takes in what came back: samples, lets the scheduler go on, gives up what failed.

        Requests may end while it samples; their tokens are dropped.

        Raises:
            Exception: A bug; the lane cannot go on.
        """
        landed = Landed([], [])
        for micro_batch in self._micro_batches.take_landed():
            result = micro_batch.result
            if isinstance(result, StepOutput):
                await self._take_in(micro_batch, result, landed)
            elif isinstance(result, StagecoachError):
                landed.failures.extend(self._give_up(micro_batch.output, result))
            else:
                assert result is not None, "a micro-batch landed without a result"
                raise result
        self._unlearned += landed.steps
        return landed

    def learn(self) -> None:
        """Tells the pace what landed. After `fill`, so that no micro-batch waits for it."""
        steps, self._unlearned = self._unlearned, []
        for step in steps:
            micro_batch = step.micro_batch
            self._pace.observe(
                micro_batch.output,
                depth=micro_batch.depth,
                load=micro_batch.load,
                stages=step.result.stage_timings,
                landed_ns=micro_batch.landed_ns,
                num_failed_drafts=step.num_failed_drafts,
            )

    def rest(self) -> None:
        """Checks that the books balance, once each time that the lane has become idle."""
        if not self._is_at_rest and self.is_idle:
            self._is_at_rest = True
            self._scheduler.check_integrity()
            self._pace.interrupt()

    def _hear(self, micro_batch: MicroBatch, result: StepOutput | Exception) -> None:
        if self._micro_batches.land(micro_batch, result, self._clock()):
            self._on_landed()

    async def _take_in(self, micro_batch: MicroBatch, result: StepOutput, landed: Landed) -> None:
        sampling_ns = self._clock()
        output = micro_batch.output
        sampled = await sample(output, result, self._requests)
        for request_id, error in sampled.errors.items():
            if request_id in self._requests:  # else it was cancelled while others were sampled
                landed.failures.append(self._fail(request_id, error))
        advanced = self._scheduler.update(output, sampled.token_ids)
        sampled_ns = self._clock()
        tokens = [
            token
            for one in advanced
            for token in take_tokens(
                self._requests[one.request_id],
                sampled.token_ids[one.request_id],
                sampled.logprobs.get(one.request_id, ()),
            )
        ]
        decided_ns = self._clock()
        step_s = (micro_batch.landed_ns - micro_batch.started_ns) / 1e9
        for token in tokens:
            if token.reason is not None:
                self.finish(token.live.request_id, token.reason)
            elif not token.live.sampler.is_ready:
                self._masks.hold(token.live, step_s=step_s)
        landed.steps.append(
            LandedStep(
                micro_batch=micro_batch,
                result=result,
                tokens=tokens,
                num_failed_drafts=sampled.num_failed_drafts(output),
                prompt_logprobs=sampled.prompt_logprobs,
                hidden_sums=sampled.hidden_sums,
                sampling_ns=sampling_ns,
                sampled_ns=sampled_ns,
                decided_ns=decided_ns,
                clock=self._clock,
            )
        )

    def _give_up(self, output: SchedulerOutput, error: StagecoachError) -> list[Failure]:
        """Computes again what a stage could not run, or fails it; hits only this micro-batch."""
        fault = StepFault.of(error)
        _log.log(
            logging.ERROR if fault is StepFault.FATAL else logging.WARNING,
            fault.value,
            extra={
                "micro_batch_id": output.micro_batch_id,
                "request_ids": [piece.request_id for piece in output.slices],
                "error": error.message,
            },
        )
        if fault is StepFault.LOST and not self.is_open:
            return []  # all that is in flight was lost with it; see `lose`
        waiting = self._scheduler.requeue(output)
        match fault:
            case StepFault.LOST:
                return self._given_up(waiting, error)
            case StepFault.REPLAY:
                gave_up = f"given up after {MAX_BLAMES} replays: {error.message}"
                return self._given_up(waiting, InternalError(gave_up))
            case StepFault.FATAL:
                # Whatever a stage says, it is not the client's fault.
                return [
                    self._fail(
                        one.request_id,
                        InternalError(
                            f"request {one.request_id} failed on a stage; see the coordinator's log"
                        ),
                    )
                    for one in waiting
                ]

    def _given_up(self, waiting: Iterable[Sequence], error: StagecoachError) -> list[Failure]:
        """Fails those of the sequences that are blamed too often."""
        return [self._fail(one.request_id, error) for one in waiting if one.num_blames > MAX_BLAMES]

    def _fail(self, request_id: str, error: StagecoachError) -> Failure:
        self.finish(request_id, FinishReason.ERROR)
        return Failure(self._requests[request_id], error)
