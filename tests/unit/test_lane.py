"""The life of a step on one lane: what is sent, what is taken in, what becomes of a failure."""

import asyncio
import math
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.events import Finished, TokensEvent
from coordinator.core.limits import MAX_BLAMES
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence as TokenSequence
from coordinator.core.step import LogitsRow, PromptLogits, SchedulerOutput, StepOutput
from coordinator.engine.lane import Lane, OnLanded
from coordinator.engine.live_request import LiveRequest
from coordinator.engine.mask_waits import MaskWaits
from coordinator.scheduler import Load, Pace, Scheduler, SchedulerConfig
from coordinator.text.output_text import OutputText
from coordinator.text.stop_strings import TextDelta
from stagecoach.contract.errors import (
    IncompatibleError,
    InternalError,
    KvFullError,
    UnavailableError,
)
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.contract.step_record import StageVisit

TOKEN = 7

TIMINGS = StageTimings(1, 2, 3, 4)


class Sent:
    """A micro-batch on its way, which a test lets land."""

    def __init__(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        self.output = output
        self.logits = logits
        self.land = on_landed

    def succeed(
        self,
        *,
        log_sum_exp: float = 0.0,
        prompt_log_sum_exps: Sequence[float] = (),
        hidden_sums: Sequence[Sequence[float]] = (),
    ) -> None:
        """Lands with these sums for the prompts in it; of each prompt all rows have the same."""
        self.land(
            StepOutput(
                micro_batch_id=self.output.micro_batch_id,
                logits=tuple(
                    LogitsRow(
                        row=wanted.row,
                        log_sum_exp=log_sum_exp,
                        candidate_ids=(TOKEN,),
                        candidate_logits=(0.0,),
                        token_logits=(),
                    )
                    for wanted in self.logits
                ),
                visits=(StageVisit(0, 10, TIMINGS),),
                stage_timings=(TIMINGS,),
                prompt_logits=tuple(
                    PromptLogits(
                        log_sum_exps=len(wanted.token_ids) * [log_sum_exp],
                        token_logits=[-float(i) for i in wanted.token_ids],
                        token_ranks=len(wanted.token_ids) * [1],
                        candidate_ids=(),
                        candidate_logits=(),
                    )
                    for wanted, log_sum_exp in zip(
                        self.output.prompt_logits(), prompt_log_sum_exps, strict=True
                    )
                ),
                hidden_sums=tuple(hidden_sums),
            )
        )


class HandRunner:
    """A pipeline whose micro-batches land when a test says so."""

    def __init__(self) -> None:
        self.is_open = True
        self.blamed: frozenset[int] = frozenset()
        self.sent: list[Sent] = []

    def start(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        self.sent.append(Sent(output, logits, on_landed))


class CountingPace(Pace):
    """Tells how many micro-batches it has learnt from."""

    num_observed = 0

    def observe(
        self,
        output: SchedulerOutput,
        *,
        depth: int,
        load: Load,
        stages: Sequence[StageTimings[int]],
        landed_ns: int,
        num_failed_drafts: int = 0,
    ) -> None:
        self.num_observed += 1
        super().observe(
            output,
            depth=depth,
            load=load,
            stages=stages,
            landed_ns=landed_ns,
            num_failed_drafts=num_failed_drafts,
        )


class Rig:
    """A lane that is open, and the table of its requests."""

    def __init__(self, clock: Callable[[], int] = lambda: 1000) -> None:
        limits = SchedulerConfig(
            max_num_batched_tokens=64,
            max_num_seqs=8,
            max_model_len=64,
            kv_block_size=4,
            num_kv_blocks=64,
        )
        self.clock = clock
        self.requests: dict[str, LiveRequest] = {}
        self.runner = HandRunner()
        self.num_heard = 0
        self.pace = CountingPace(num_stages=1, max_num_batched_tokens=64, depth=1)
        self.lane = Lane(
            Scheduler(limits),
            self.pace,
            requests=self.requests,
            masks=MaskWaits(self.requests, asyncio.Event()),
            on_landed=self.hear,
            clock=clock,
        )
        self.lane.open(self.runner)

    def hear(self) -> None:
        self.num_heard += 1

    def add(
        self,
        *names: str,
        max_tokens: int = 3,
        prompt: tuple[int, ...] = (1, 2),
        prompt_logprobs: int | None = None,
        embedding: EmbeddingParams | None = None,
    ) -> None:
        for name in names:
            request = Request(
                request_id=name,
                prompt_token_ids=prompt,
                max_tokens=max_tokens,
                prompt_logprobs=prompt_logprobs,
                embedding=embedding,
            )
            sequence = TokenSequence(request=request)
            self.lane.place(sequence)
            self.requests[name] = LiveRequest.of(
                sequence,
                num_stages=1,
                vocab_size=16,
                text=OutputText(None, ()),
                constraint=None,
                on_cancel=lambda: None,
                clock=self.clock,
            )

    def fill(self) -> Sent:
        """Fills the lane, which sends exactly one micro-batch."""
        before = len(self.runner.sent)
        self.lane.fill()
        [sent] = self.runner.sent[before:]
        return sent

    async def failures(self) -> dict[str, str]:
        """Takes in what landed, forgets the requests that failed, and returns their errors."""
        landed = await self.lane.land()
        for failure in landed.failures:
            del self.requests[failure.live.request_id]
        return {failure.live.request_id: str(failure.error) for failure in landed.failures}


async def test_a_request_runs_to_its_end_and_the_lane_comes_to_rest() -> None:
    rig = Rig()
    rig.add("a", max_tokens=2)
    for expected in (None, FinishReason.LENGTH):
        rig.fill().succeed()
        assert rig.num_heard == 1
        rig.num_heard = 0
        landed = await rig.lane.land()
        [step] = landed.steps
        [token] = step.tokens
        assert (token.token_id, token.reason) == (TOKEN, expected)
        assert landed.failures == []
    assert rig.lane.num_sequences == 0
    assert not rig.lane.is_idle, "the stages do not know of its end"
    free = rig.fill()
    assert (free.output.slices, len(free.output.slot_ops)) == ((), 1)
    free.succeed()
    await rig.lane.land()
    assert rig.lane.is_idle
    rig.lane.rest()


async def test_the_pace_learns_of_a_step_only_when_it_is_told_to() -> None:
    rig = Rig()
    rig.add("a")
    rig.fill().succeed()
    await rig.lane.land()
    rig.fill()
    assert rig.pace.num_observed == 0
    rig.lane.learn()
    rig.lane.learn()
    assert rig.pace.num_observed == 1


async def test_what_a_stage_cannot_run_now_is_run_again_so_often_and_then_fails() -> None:
    rig = Rig()
    rig.add("a", "b")
    rig.fill().land(KvFullError("full"))
    assert await rig.failures() == {}
    rig.lane.finish("b", FinishReason.ABORT)
    for _ in range(MAX_BLAMES - 1):
        rig.fill().land(KvFullError("full"))
        assert await rig.failures() == {}
    last = rig.fill()
    last.land(KvFullError("full"))
    assert await rig.failures() == {"a": "given up after 2 replays: full"}
    assert rig.lane.num_sequences == 0
    rig.fill().succeed()
    await rig.lane.land()
    rig.lane.rest()


async def test_a_token_in_between_forgives_what_was_replayed() -> None:
    rig = Rig()
    rig.add("a", max_tokens=9)
    for _ in range(4):
        for _ in range(MAX_BLAMES):
            rig.fill().land(KvFullError("full"))
            assert await rig.failures() == {}
        rig.fill().succeed()
        assert await rig.failures() == {}


async def test_what_a_stage_will_not_run_fails_the_requests_in_it_and_no_others() -> None:
    rig = Rig()
    rig.add("a", "gone")
    sent = rig.fill()
    rig.add("later")
    rig.lane.finish("gone", FinishReason.ABORT)
    del rig.requests["gone"]
    sent.land(IncompatibleError("secret"))
    assert await rig.failures() == {"a": "request a failed on a stage; see the coordinator's log"}
    rig.fill().succeed()
    [step] = (await rig.lane.land()).steps
    assert [token.live.request_id for token in step.tokens] == ["later"]


async def test_logits_that_cannot_be_sampled_fail_their_request_alone() -> None:
    rig = Rig()
    rig.add("a")
    rig.fill().succeed(log_sum_exp=float("nan"))
    landed = await rig.lane.land()
    [failure] = landed.failures
    assert isinstance(failure.error, InternalError)
    assert rig.lane.num_sequences == 0
    assert [step.tokens for step in landed.steps] == [[]]


async def test_a_deadline_on_an_open_pipeline_costs_a_replay() -> None:
    rig = Rig()
    rig.add("a")
    for _ in range(MAX_BLAMES):
        rig.fill().land(UnavailableError("late"))
        assert await rig.failures() == {}
    rig.fill().land(UnavailableError("late"))
    assert await rig.failures() == {"a": "late"}


async def test_who_is_blamed_for_too_many_lost_pipelines_fails() -> None:
    rig = Rig()
    rig.add("a")
    for num_losses in range(1, MAX_BLAMES + 2):
        sent = rig.fill()
        rig.runner.is_open = False
        rig.runner.blamed = frozenset({sent.output.micro_batch_id})
        sent.land(UnavailableError("gone"))
        assert await rig.failures() == {}, "the loss is one, not two"
        assert rig.lane.is_broken
        failures = rig.lane.lose()
        assert not rig.lane.is_broken
        assert len(failures) == (num_losses > MAX_BLAMES)
        rig.runner = HandRunner()
        rig.lane.open(rig.runner)
    [failure] = failures
    assert failure.live is rig.requests["a"]
    assert str(failure.error) == "a stage was lost again and again"
    rig.fill().succeed()  # tells the stages that all slots are free
    await rig.lane.land()
    assert rig.lane.is_idle
    rig.lane.rest()


async def test_what_comes_back_of_a_lost_pipeline_is_dropped() -> None:
    rig = Rig()
    rig.add("a")
    late = rig.fill()
    rig.runner.is_open = False
    assert rig.lane.lose() == []
    late.succeed()
    assert rig.num_heard == 0
    landed = await rig.lane.land()
    assert (landed.steps, landed.failures) == ([], [])
    rig.lane.fill()
    assert rig.runner.sent == [late], "a lane without a pipeline sends nothing"


async def test_a_step_counts_for_who_was_in_it_and_not_for_the_next_of_its_id() -> None:
    rig = Rig()
    rig.add("a", "b")
    sent = rig.fill()
    rig.lane.finish("a", FinishReason.ABORT)
    del rig.requests["a"]
    sent.succeed()
    [step] = (await rig.lane.land()).steps
    rig.add("a")
    step.send(rig.requests)
    assert [rig.requests[name].num_steps for name in "ab"] == [0, 1]


async def test_watchers_and_the_stats_of_a_request_charge_work_to_the_same_names() -> None:
    """What decides which tokens are the last was sampling for the ones, text for the others."""
    rig = Rig((2**reading for reading in count()).__next__)  # every interval is another one
    rig.add("a")
    rig.fill().succeed()
    [step] = (await rig.lane.land()).steps
    record = step.record(step.send(rig.requests))
    assert (record.started_ns, record.scheduled_ns) == (1, 2)
    assert step.micro_batch.landed_ns == 8, "the lane looked once more whether to send another"
    assert (record.sampling_ns, record.sampled_ns, record.decided_ns) == (16, 32, 64)
    assert (record.schedule_ns, record.sample_ns) == (1, 16)
    assert (record.emitting_ns, record.emitted_ns) == (128, 512)
    assert rig.requests["a"].first_token_ns == 256, "text is on the same clock as steps"
    assert rig.requests["a"].as_ended(FinishReason.ABORT, None).end_ns == 1024
    assert (record.detokenize_ns, record.step_ns) == (32 + 384, 63 + 384)
    totals = rig.requests["a"].times.totals(1)
    for name in ("schedule_ns", "sample_ns", "detokenize_ns", "step_ns"):
        assert getattr(totals, name) == getattr(record, name)


async def test_a_bug_of_ours_is_raised() -> None:
    rig = Rig()
    rig.add("a")
    rig.fill().land(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        await rig.lane.land()


async def test_log_probabilities_of_prompts_go_to_their_requests_before_tokens() -> None:
    rig = Rig()
    rig.add("a", prompt=(1, 2, 3, 4), prompt_logprobs=0, max_tokens=1)
    rig.add("b")
    rig.add("c", prompt=(5, 6), prompt_logprobs=0)
    sent = rig.fill()
    assert [one.first_row for one in sent.output.prompt_logits()] == [2, 4]  # the shortest first
    sent.succeed(prompt_log_sum_exps=(0.25, 0.5))
    landed = await rig.lane.land()
    [step] = landed.steps
    step.send(rig.requests)
    found = {}
    for name, live in rig.requests.items():
        events = [await anext(live.stream) for _ in range(3 if name != "b" else 2)]
        found[name] = [event for event in events if isinstance(event, PromptLogprobs)]
        assert isinstance(events[-1], TokensEvent)
    assert found["b"] == []
    [of_a], [of_c] = found["a"], found["c"]
    assert (of_a.start, [one.logprob for one in of_a]) == (1, [-2.5, -3.5, -4.5])
    assert (of_c.start, [one.logprob for one in of_c]) == (1, [-6.25])


async def test_a_prompt_whose_logits_are_not_finite_fails_its_request_alone() -> None:
    rig = Rig()
    rig.add("a", "b", prompt=(1, 2, 3), prompt_logprobs=0)
    rig.fill().succeed(prompt_log_sum_exps=(math.nan, 0.0))
    assert await rig.failures() == {"a": "model produced NaN or infinite logits"}
    assert rig.requests["b"].sequence.output_token_ids == [TOKEN]


async def test_log_probabilities_of_a_request_that_was_cancelled_are_dropped() -> None:
    rig = Rig()
    rig.add("a", "b", prompt=(1, 2, 3), prompt_logprobs=0)
    sent = rig.fill()
    rig.lane.finish("a", FinishReason.ABORT)
    gone = rig.requests.pop("a")
    sent.succeed(prompt_log_sum_exps=(0.0, 0.0))
    landed = await rig.lane.land()
    landed.steps[0].send(rig.requests)
    assert gone.sequence.num_known_logprobs == 0
    assert rig.requests["b"].sequence.num_known_logprobs == 2


async def test_an_embedding_comes_with_the_end_of_its_request() -> None:
    rig = Rig()
    rig.add("a", prompt=(1, 2), embedding=EmbeddingParams(normalize=False), max_tokens=0)
    rig.add("b", prompt=(1, 2, 3))
    mean = EmbeddingParams(pooling=Pooling.MEAN, dimensions=2)
    rig.add("c", prompt=(1, 2, 3, 4), embedding=mean, max_tokens=0)
    sent = rig.fill()
    assert [(one.first_row, one.num_rows) for one in sent.output.hidden_sums()] == [(1, 1), (5, 4)]
    sent.succeed(hidden_sums=[(0.5, 1.0, 2.0), (12.0, -16.0, 99.0)])
    landed = await rig.lane.land()
    for token in landed.steps[0].send(rig.requests).last_tokens:
        token.live.end(FinishReason.LENGTH, TextDelta("", stopped=False))
    found = {}
    for name in ("a", "c"):
        [_, end] = [event async for event in rig.requests[name].stream]
        assert isinstance(end, Finished)
        assert end.embedding is not None
        found[name] = list(end.embedding)
    assert found == {"a": [0.5, 1.0, 2.0], "c": pytest.approx([0.6, -0.8])}


async def test_hidden_states_that_are_not_finite_fail_their_request_alone() -> None:
    rig = Rig()
    rig.add("a", "b", "c", prompt=(1, 2), embedding=EmbeddingParams(), max_tokens=0)
    rig.fill().succeed(hidden_sums=[(0.5, math.inf), (1.0, 2.0), (math.nan, 0.0)])
    problem = "model produced NaN or infinite hidden states"
    assert await rig.failures() == {"a": problem, "c": problem}
    assert rig.requests["b"].sequence.num_pooled_tokens == 1


async def test_an_embedding_that_was_cancelled_has_none() -> None:
    rig = Rig()
    mean = EmbeddingParams(pooling=Pooling.MEAN)
    rig.add("b", prompt=(1,) * 30)  # the shortest goes first, and leaves half of the step
    rig.add("a", prompt=(1,) * 60, embedding=mean, max_tokens=0)
    rig.fill().succeed(hidden_sums=[(1.0, 2.0)])
    landed = await rig.lane.land()
    landed.steps[0].send(rig.requests)
    live = rig.requests["a"]
    assert live.sequence.num_pooled_tokens == 34
    live.end(FinishReason.ABORT, TextDelta("", stopped=False))
    [_, end] = [event async for event in live.stream]
    assert isinstance(end, Finished)
    assert end.embedding is None


async def test_where_no_output_is_wanted_the_token_behind_the_prompt_ends_it() -> None:
    rig = Rig()
    rig.add("a", prompt=(1, 2, 3), prompt_logprobs=0, max_tokens=0)
    rig.fill().succeed(prompt_log_sum_exps=(0.0,))
    landed = await rig.lane.land()
    [token] = landed.steps[0].tokens
    assert token.is_hidden
    assert token.reason is FinishReason.LENGTH
    assert rig.requests["a"].num_completion_tokens == 0
