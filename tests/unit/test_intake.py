"""A request is taken or refused, once; what was prepared for one that is not taken is given up."""

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.events import Accepted, Finished
from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.observation import RequestEnd
from coordinator.core.request import FinishReason
from coordinator.core.request_spec import RequestSpec, TokenPrompt
from coordinator.engine.admission import Admission
from coordinator.engine.dispatcher import Dispatcher
from coordinator.engine.engine_status import EngineCounters
from coordinator.engine.intake import Intake
from coordinator.engine.lane import Lane
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.live_requests import LiveRequests
from coordinator.engine.mask_waits import MaskWaits
from coordinator.engine.outage import Outage
from coordinator.observe.observer import Observers
from coordinator.scheduler import Pace, Scheduler, SchedulerConfig
from coordinator.text.conversations import Conversations
from stagecoach.contract.errors import (
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
)

VOCAB_SIZE = 16
MAX_NUM_WAITING = 2


class AnyToken:
    """A constraint that allows everything; counts how often it is closed."""

    relaxed_fields = ("prompt.chat.tools[0].parameters",)
    is_ready = True
    is_complete = False

    def __init__(self) -> None:
        self.num_closed = 0

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64]:
        return np.arange(VOCAB_SIZE)

    def close(self) -> None:
        self.num_closed += 1


class HeldGrammars(GrammarCompiler):
    """Compiles a grammar when a test says so."""

    def __init__(self) -> None:
        super().__init__(None, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
        self.is_begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.failure: StagecoachError | None = None
        self.was_cancelled = False
        self.constraint = AnyToken()

    def check_model(self, grammar: Grammar) -> None:
        pass

    async def compile(self, grammar: Grammar, *, ignore_eos: bool = False) -> TokenConstraint:
        self.is_begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self.failure is not None:
            raise self.failure
        return self.constraint  # type: ignore[return-value]


class Heard:
    """An observer."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.refused: list[StagecoachError] = []
        self.ended: list[RequestEnd] = []

    def request_accepted(self, request_id: str, num_prompt_tokens: int) -> None:
        self.accepted.append(request_id)

    def request_refused(self, error: StagecoachError) -> None:
        self.refused.append(error)

    def request_ended(self, end: RequestEnd) -> None:
        self.ended.append(end)


class Rig:
    """An intake over one lane without a pipeline."""

    def __init__(self) -> None:
        limits = SchedulerConfig(
            max_num_batched_tokens=64,
            max_num_seqs=4,
            max_model_len=64,
            kv_block_size=4,
            num_kv_blocks=64,
            prefix_cache=True,
        )
        wake = asyncio.Event()
        self.by_id: dict[str, LiveRequest] = {}
        self.lane = Lane(
            Scheduler(limits),
            Pace(num_stages=1, max_num_batched_tokens=64),
            requests=self.by_id,
            masks=MaskWaits(self.by_id, wake),
            on_landed=wake.set,
        )
        self.grammars = HeldGrammars()
        self.heard = Heard()
        self.counters = EngineCounters()
        dispatcher = Dispatcher([self.lane], max_num_waiting=MAX_NUM_WAITING)
        observers = Observers((self.heard,))
        self.requests = LiveRequests(
            self.by_id,
            dispatcher=dispatcher,
            counters=self.counters,
            observers=observers,
            wake=wake,
        )
        self.intake = Intake(
            admission=Admission(
                text=None,
                vocab_size=VOCAB_SIZE,
                eos_token_ids=frozenset(),
                max_request_tokens=limits.max_request_tokens,
                answers_prompt_logits=True,
                answers_hidden_sums=True,
                hidden_size=8,
            ),
            grammars=self.grammars,
            outage=Outage(stage_wait_s=60.0),
            dispatcher=dispatcher,
            requests=self.requests,
            observers=observers,
            limits=limits,
            num_stages=1,
            vocab_size=VOCAB_SIZE,
            conversations=Conversations(None),
            make_drafter=None,
        )

    async def submitting(self, spec: RequestSpec) -> asyncio.Task[LiveRequest]:
        """A request whose grammar is being compiled."""
        task = asyncio.create_task(self.intake.submit(spec))
        await self.grammars.is_begun.wait()
        assert not task.done()
        assert self.by_id == {}
        return task

    def check_refused(self, error: StagecoachError) -> None:
        assert self.heard.refused == [error]
        assert self.grammars.constraint.num_closed == 1


def create_spec(request_id: str = "r", *, grammar: bool = False) -> RequestSpec:
    return RequestSpec(
        request_id=request_id,
        prompt=TokenPrompt(token_ids=(1, 2, 3, 4, 5)),
        max_tokens=4,
        grammar=Grammar(kind=GrammarKind.REGEX, text="a") if grammar else None,
    )


async def test_a_request_that_needs_no_work_is_taken_without_giving_up_the_loop() -> None:
    rig = Rig()
    submitting = rig.intake.submit(create_spec())
    with pytest.raises(StopIteration) as caught:
        submitting.send(None)
    live = caught.value.value
    assert rig.by_id == {"r": live}
    assert rig.heard.accepted == ["r"]
    assert rig.lane.num_waiting == 1
    assert isinstance(await anext(live.stream), Accepted)


async def test_a_request_is_taken_once_its_grammar_is_compiled_and_ends_in_every_table() -> None:
    rig = Rig()
    submitting = await rig.submitting(create_spec(grammar=True))
    rig.grammars.go_on.set()
    live = await submitting
    assert rig.heard.accepted == ["r"]
    assert len(live.sequence.block_hashes) == 1
    for _ in range(2):
        live.stream.cancel()
    accepted, *_, end = [event async for event in live.stream]
    assert isinstance(accepted, Accepted)
    assert accepted.relaxed_fields == AnyToken.relaxed_fields
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.ABORT
    assert (rig.by_id, rig.lane.num_sequences) == ({}, 0)
    assert rig.grammars.constraint.num_closed == 1
    assert [one.request_id for one in rig.heard.ended] == ["r"]
    assert rig.counters.num_finished == 1


async def test_a_grammar_that_is_wrong_refuses_its_request() -> None:
    rig = Rig()
    rig.grammars.failure = InvalidArgumentError("wrong", field="grammar.regex")
    submitting = await rig.submitting(create_spec(grammar=True))
    rig.grammars.go_on.set()
    with pytest.raises(InvalidArgumentError, match="wrong"):
        await submitting
    assert rig.heard.refused == [rig.grammars.failure]
    assert (rig.by_id, rig.lane.num_sequences) == ({}, 0)


async def test_to_cancel_the_call_is_to_end_the_work_and_is_no_refusal() -> None:
    rig = Rig()
    submitting = await rig.submitting(create_spec(grammar=True))
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert rig.grammars.was_cancelled
    assert (rig.heard.accepted, rig.heard.refused) == ([], [])
    assert (rig.by_id, rig.lane.num_sequences) == ({}, 0)


async def test_an_intake_that_is_closed_meanwhile_refuses_what_is_ready() -> None:
    rig = Rig()
    submitting = await rig.submitting(create_spec(grammar=True))
    rig.intake.close()
    rig.grammars.go_on.set()
    with pytest.raises(UnavailableError, match="shutting down") as caught:
        await submitting
    rig.check_refused(caught.value)


async def test_a_queue_that_is_full_meanwhile_refuses_what_is_ready() -> None:
    rig = Rig()
    submitting = await rig.submitting(create_spec(grammar=True))
    for index in range(MAX_NUM_WAITING):
        await rig.intake.submit(create_spec(f"other {index}"))
    rig.grammars.go_on.set()
    with pytest.raises(QueueFullError) as caught:
        await submitting
    rig.check_refused(caught.value)


async def test_an_id_that_is_taken_meanwhile_refuses_what_is_ready() -> None:
    rig = Rig()
    submitting = await rig.submitting(create_spec(grammar=True))
    await rig.intake.submit(create_spec())
    rig.grammars.go_on.set()
    with pytest.raises(InvalidArgumentError, match="'r' is in use") as caught:
        await submitting
    rig.check_refused(caught.value)
    assert rig.lane.num_waiting == 1


async def test_a_failure_ends_the_request_that_failed_and_not_the_next_of_its_id() -> None:
    """A lane tells of failures once all that landed is taken in; an id may change hands before."""
    rig = Rig()
    failed = await rig.intake.submit(create_spec())
    failed.stream.cancel()
    successor = await rig.intake.submit(create_spec())
    rig.requests.fail(failed, InternalError("too late"))
    assert rig.by_id == {"r": successor}
    rig.requests.fail(successor, InternalError("in time"))
    assert [str(end.error) for end in rig.heard.ended] == ["None", "in time"]
