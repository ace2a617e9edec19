"""The scheduler step by step: what runs, waits, is preempted, replayed and freed."""

from typing import Any

import pytest

from coordinator.core.limits import MAX_REPLAYS
from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence, SequenceState
from coordinator.core.step import FreeSlot, SchedulerOutput
from coordinator.scheduler import Load, Scheduler, SchedulerConfig, StepBudget
from coordinator.scheduler.entrance import MAX_PASSES
from protos.errors import ContextLengthExceededError, InvalidArgumentError, QueueFullError

TOKEN = 7


def create_scheduler(
    *,
    max_num_batched_tokens: int = 64,
    max_num_seqs: int = 8,
    max_model_len: int = 128,
    kv_block_size: int = 4,
    num_kv_blocks: int = 64,
    max_num_waiting: int = 64,
) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_block_size=kv_block_size,
            num_kv_blocks=num_kv_blocks,
            max_num_waiting=max_num_waiting,
        )
    )


def create_request(request_id: str = "a", *, num_prompt: int = 4, max_tokens: int = 8) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(range(100, 100 + num_prompt)),
        max_tokens=max_tokens,
    )


def add(
    scheduler: Scheduler, *request_ids: str, num_prompt: int = 4, max_tokens: int = 8
) -> list[Sequence]:
    return [
        scheduler.add(create_request(request_id, num_prompt=num_prompt, max_tokens=max_tokens))
        for request_id in request_ids
    ]


def create_budget(*, max_num_decodes: int = 64, max_num_prefill_tokens: int = 64) -> StepBudget:
    return StepBudget(
        max_num_decodes=max_num_decodes, max_num_prefill_tokens=max_num_prefill_tokens
    )


def schedule(scheduler: Scheduler, budget: StepBudget | None = None) -> SchedulerOutput:
    output = scheduler.schedule(budget)
    scheduler.check_integrity()
    assert output is not None
    return output


def update(scheduler: Scheduler, output: SchedulerOutput) -> list[str]:
    sampled = {piece.request_id: TOKEN for piece in output.slices if piece.samples}
    advanced = scheduler.update(output, sampled)
    scheduler.check_integrity()
    return [sequence.request_id for sequence in advanced]


def step(scheduler: Scheduler) -> SchedulerOutput:
    output = schedule(scheduler)
    update(scheduler, output)
    return output


def scheduled(output: SchedulerOutput) -> dict[str, tuple[int, int]]:
    """By request id, start position and number of tokens."""
    return {
        piece.request_id: (piece.start_position, len(piece.token_ids)) for piece in output.slices
    }


def freed(output: SchedulerOutput) -> tuple[int, ...]:
    """Slots that an output frees; it does nothing else to slots."""
    assert all(isinstance(op, FreeSlot) for op in output.slot_ops)
    return tuple(op.kv_slot for op in output.slot_ops if isinstance(op, FreeSlot))


def run_to_the_end(scheduler: Scheduler) -> tuple[dict[str, list[int]], int]:
    """Returns outputs by request id, and the highest number of KV blocks in use."""
    outputs: dict[str, list[int]] = {}
    peak = 0
    while scheduler.has_work:
        output = schedule(scheduler)
        peak = max(peak, scheduler.config.num_kv_blocks - scheduler.num_free_kv_blocks)
        sampled = {piece.request_id: TOKEN for piece in output.slices if piece.samples}
        for sequence in scheduler.update(output, sampled):
            if sequence.at_max_tokens:
                assert scheduler.finish(sequence.request_id, FinishReason.LENGTH)
                outputs[sequence.request_id] = sequence.output_token_ids
        scheduler.check_integrity()
    return outputs, peak


@pytest.mark.parametrize(
    "field",
    [
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_model_len",
        "kv_block_size",
        "num_kv_blocks",
        "max_num_waiting",
        "num_kv_slots",
        "min_awaited_tokens",
    ],
)
def test_config_refuses_a_limit_below_one(field: str) -> None:
    limits: dict[str, Any] = dict.fromkeys(SchedulerConfig.__dataclass_fields__, 1) | {field: 0}
    with pytest.raises(InvalidArgumentError, match=f"{field} is 0") as caught:
        SchedulerConfig(**limits)
    assert caught.value.field == field


class TestAdd:
    def test_refuses_an_id_in_use_until_it_has_ended(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        with pytest.raises(InvalidArgumentError, match="'a' is in use") as caught:
            add(scheduler, "a")
        assert caught.value.field == "request_id"
        scheduler.finish("a", FinishReason.ABORT)
        add(scheduler, "a")
        assert scheduler.num_waiting == 1

    def test_accepts_exactly_what_the_model_holds(self) -> None:
        scheduler = create_scheduler(max_model_len=20)
        add(scheduler, "a", num_prompt=12, max_tokens=8)
        with pytest.raises(ContextLengthExceededError, match="21 tokens, the model holds 20") as c:
            add(scheduler, "b", num_prompt=12, max_tokens=9)
        assert c.value.details == {"num_prompt_tokens": "12", "max_tokens": "9", "limit": "20"}
        assert scheduler.num_waiting == 1

    def test_refuses_what_the_kv_memory_never_holds(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=3, kv_block_size=4)
        add(scheduler, "a", num_prompt=11, max_tokens=1)
        with pytest.raises(ContextLengthExceededError, match="13 tokens, the KV memory holds 12"):
            add(scheduler, "b", num_prompt=12, max_tokens=1)

    def test_refuses_beyond_the_waiting_limit(self) -> None:
        scheduler = create_scheduler(max_num_waiting=2)
        add(scheduler, "a", "b")
        with pytest.raises(QueueFullError, match="2 requests are waiting, the limit is 2") as c:
            add(scheduler, "c")
        assert c.value.details == {"num_waiting": "2", "max_num_waiting": "2"}
        step(scheduler)
        add(scheduler, "c")


class TestSchedule:
    def test_nothing_to_do_is_none(self) -> None:
        assert create_scheduler().schedule() is None

    def test_prefill_then_decode(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a", num_prompt=4)
        output = schedule(scheduler)
        (piece,) = output.slices
        assert piece.token_ids == (100, 101, 102, 103)
        assert piece.samples
        assert sequence.in_flight
        assert update(scheduler, output) == ["a"]
        (piece,) = schedule(scheduler).slices
        assert (piece.start_position, piece.token_ids, piece.samples) == (4, (TOKEN,), True)

    def test_prompt_longer_than_the_budget_runs_in_chunks_and_samples_once(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=4)
        add(scheduler, "a", num_prompt=10)
        seen = []
        for _ in range(4):
            output = schedule(scheduler)
            (piece,) = output.slices
            seen.append((piece.start_position, len(piece.token_ids), piece.samples))
            update(scheduler, output)
        assert seen == [(0, 4, False), (4, 4, False), (8, 2, True), (10, 1, True)]

    def test_a_request_joins_a_running_batch_at_the_next_step_with_what_the_budget_leaves(
        self,
    ) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=5)
        add(scheduler, "a")
        step(scheduler)
        add(scheduler, "b", num_prompt=6)
        assert scheduled(step(scheduler)) == {"a": (4, 1), "b": (0, 4)}
        assert scheduled(step(scheduler)) == {"a": (5, 1), "b": (4, 2)}

    def test_the_token_budget_is_never_exceeded(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, "a", "b", "c")
        assert scheduled(step(scheduler)) == {"a": (0, 4), "b": (0, 4)}
        assert scheduled(step(scheduler)) == {"a": (4, 1), "b": (4, 1), "c": (0, 4)}

    def test_a_sequence_in_flight_is_not_scheduled_again(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        first = schedule(scheduler)
        assert scheduler.schedule() is None
        add(scheduler, "b")
        second = schedule(scheduler)
        assert scheduled(second) == {"b": (0, 4)}
        assert update(scheduler, second) == ["b"]
        assert update(scheduler, first) == ["a"]
        assert scheduled(schedule(scheduler)) == {"a": (4, 1), "b": (4, 1)}

    def test_a_budget_of_decodes_leaves_sequences_for_the_next_micro_batch(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b", "c")
        step(scheduler)
        two = create_budget(max_num_decodes=2)
        assert scheduled(schedule(scheduler, two)).keys() == {"a", "b"}
        assert scheduled(schedule(scheduler, two)).keys() == {"c"}

    def test_a_budget_of_prefill_cuts_prompts_and_not_decodes(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b")
        step(scheduler)
        add(scheduler, "long", num_prompt=20)
        add(scheduler, "late")
        output = schedule(scheduler, create_budget(max_num_prefill_tokens=6))
        assert scheduled(output) == {"a": (4, 1), "b": (4, 1), "long": (0, 3), "late": (0, 3)}

    def test_decodes_that_came_after_a_prompt_are_not_held_up_by_it(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "long", num_prompt=40)
        add(scheduler, "short")
        budget = create_budget(max_num_prefill_tokens=20)
        first = schedule(scheduler, budget)
        assert scheduled(first) == {"short": (0, 4), "long": (0, 16)}
        update(scheduler, first)
        second = schedule(scheduler, create_budget(max_num_prefill_tokens=8))
        assert scheduled(second) == {"short": (4, 1), "long": (16, 8)}

    def test_load_counts_what_runs_and_what_has_a_slot_to_go_to(self) -> None:
        scheduler = create_scheduler(max_num_seqs=3)
        add(scheduler, "a", "b")
        step(scheduler)
        add(scheduler, "c", "d", num_prompt=7)
        assert scheduler.load() == Load(
            num_decodes=2, num_prefills=1, num_prefill_tokens=7, empty_kv_share=1 - 8 / 256
        )

    def test_no_more_sequences_run_than_there_are_slots(self) -> None:
        scheduler = create_scheduler(max_num_seqs=2)
        add(scheduler, "a", "b", "c")
        output = step(scheduler)
        assert {piece.kv_slot for piece in output.slices} == {0, 1}
        assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)

    def test_admission_needs_the_blocks_of_the_whole_prompt(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=6, max_num_batched_tokens=4)
        add(scheduler, "a", "b", num_prompt=16, max_tokens=1)
        for _ in range(4):
            assert scheduled(step(scheduler)).keys() == {"a"}


class TestPromptsSideBySide:
    def test_a_short_prompt_starts_in_the_next_micro_batch_behind_any_number_of_long_ones(
        self,
    ) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, *"abcdef", num_prompt=60)
        assert scheduled(step(scheduler)) == {"a": (0, 8)}
        add(scheduler, "short", num_prompt=3)
        assert scheduled(step(scheduler)) == {"short": (0, 3), "a": (8, 5)}

    def test_while_a_long_prompt_is_in_flight_a_short_one_gets_the_next_micro_batch(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, "a", "b", num_prompt=60)
        schedule(scheduler)
        add(scheduler, "short", num_prompt=3)
        assert scheduled(schedule(scheduler)) == {"short": (0, 3), "b": (0, 5)}

    def test_the_oldest_prompt_keeps_half_of_the_room_whatever_comes_after_it(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8, max_num_seqs=64)
        add(scheduler, "long", num_prompt=60)
        step(scheduler)
        progress = []
        for i in range(5):
            add(scheduler, f"{i}", f"{i}+", num_prompt=4, max_tokens=1)
            output = step(scheduler)
            progress.append(scheduled(output)["long"][1])
            for piece in output.slices:
                if piece.samples:
                    scheduler.finish(piece.request_id, FinishReason.LENGTH)
        assert progress == [4] * 5

    def test_prompts_of_one_length_run_one_after_another_in_order(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, "a", "b", "c", num_prompt=16)
        seen = [scheduled(step(scheduler)) for _ in range(3)]
        assert seen == [{"a": (0, 8)}, {"a": (8, 8)}, {"a": (16, 1), "b": (0, 7)}]

    def test_what_the_short_and_the_oldest_leave_goes_to_the_others(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=32)
        add(scheduler, "a", "b", num_prompt=14)
        add(scheduler, "short", num_prompt=2)
        assert scheduled(step(scheduler)) == {"short": (0, 2), "a": (0, 14), "b": (0, 14)}

    def test_new_prompts_are_not_shut_out_by_what_a_lost_stage_left_to_compute(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8, max_model_len=256)
        add(scheduler, "a", "b", "c", num_prompt=40)
        while scheduler.num_waiting:
            step(scheduler)
        scheduler.preempt_all()
        add(scheduler, "new", num_prompt=4)
        assert scheduled(step(scheduler)) == {"new": (0, 4), "a": (0, 4)}

    def test_the_last_slot_is_kept_for_the_oldest(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8, max_num_seqs=2)
        add(scheduler, "a", "b", num_prompt=60)
        add(scheduler, "short", num_prompt=2)
        assert scheduled(step(scheduler)) == {"a": (0, 8)}
        scheduler.finish("a", FinishReason.ABORT)
        assert scheduled(step(scheduler)) == {"b": (0, 6), "short": (0, 2)}


class TestOvertaking:
    def test_what_fits_passes_the_first_that_does_not(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=30, max_num_seqs=32)
        add(scheduler, "running", num_prompt=20, max_tokens=100)
        step(scheduler)
        add(scheduler, "large", num_prompt=100)
        names = [f"small {i}" for i in range(20)]
        add(scheduler, *names, num_prompt=1, max_tokens=1)
        assert set(scheduled(step(scheduler))) == {"running", *names}

    def test_no_more_than_so_many_pass_and_then_nothing_does(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=30, max_num_waiting=1000)
        add(scheduler, "running", num_prompt=20, max_tokens=100)
        step(scheduler)
        (large,) = add(scheduler, "large", num_prompt=100)
        num_passed = 0
        for i in range(MAX_PASSES // 2):
            add(scheduler, *(f"{i}.{j}" for j in range(4)), num_prompt=1, max_tokens=1)
            for piece in step(scheduler).slices:
                if piece.request_id != "running":
                    num_passed += 1
                    scheduler.finish(piece.request_id, FinishReason.LENGTH)
        assert num_passed == large.num_passes == MAX_PASSES
        assert large.state is SequenceState.WAITING
        scheduler.finish("running", FinishReason.STOP)
        assert "large" in scheduled(step(scheduler))

    def test_one_that_ran_before_is_passed_only_by_what_fits_to_its_end(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=8)
        add(scheduler, "a", num_prompt=14, max_tokens=12)
        (later,) = add(scheduler, "b", num_prompt=12, max_tokens=6)
        while later.num_preemptions == 0:
            step(scheduler)
        add(scheduler, "grows", num_prompt=1, max_tokens=12)
        assert "grows" not in scheduled(step(scheduler))
        add(scheduler, "ends", num_prompt=1, max_tokens=2)
        assert "ends" in scheduled(step(scheduler))
        assert later.state is SequenceState.WAITING


class TestPreemption:
    def test_the_latest_gives_way_and_resumes_with_its_tokens(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4)
        add(scheduler, "a", num_prompt=4, max_tokens=12)
        (later,) = add(scheduler, "b", num_prompt=3, max_tokens=8)
        for _ in range(5):
            step(scheduler)
        # a: 9 tokens want a third block; b holds the last two with 8.
        output = step(scheduler)
        assert scheduled(output) == {"a": (8, 1)}
        assert freed(output) == (1,)
        assert later.state is SequenceState.WAITING
        assert (later.num_computed_tokens, later.kv_slot) == (0, None)
        assert (later.num_preemptions, later.num_replays) == (1, 0)
        assert later.output_token_ids == [TOKEN] * 5
        scheduler.finish("a", FinishReason.STOP)
        resumed = schedule(scheduler)
        assert scheduled(resumed) == {"b": (0, 8)}
        assert resumed.slices[0].token_ids == (100, 101, 102, *[TOKEN] * 5)

    def test_a_preempted_sequence_goes_before_those_that_wait(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b")
        lost = schedule(scheduler)
        add(scheduler, "c")
        scheduler.requeue(lost)
        assert list(scheduled(schedule(scheduler))) == ["a", "b", "c"]

    def test_the_last_waits_for_blocks_and_keeps_its_kv(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4)
        add(scheduler, "a", num_prompt=7, max_tokens=9)
        (last,) = add(scheduler, "b", num_prompt=3, max_tokens=8)
        step(scheduler)
        step(scheduler)  # a: 9 tokens; b: 5 tokens
        output = schedule(scheduler)
        assert scheduled(output) == {"a": (8, 1)}
        assert last.state is SequenceState.RUNNING
        assert last.num_computed_tokens == 4
        scheduler.finish("a", FinishReason.STOP)
        update(scheduler, output)
        assert scheduled(schedule(scheduler)) == {"b": (4, 1)}

    def test_one_in_flight_is_not_preempted_but_waited_for(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4)
        add(scheduler, "a", num_prompt=4, max_tokens=12)
        (later,) = add(scheduler, "b", num_prompt=3, max_tokens=8)
        for _ in range(4):
            step(scheduler)
        first = schedule(scheduler, create_budget(max_num_decodes=1))
        second = schedule(scheduler)
        assert (scheduled(first), scheduled(second)) == ({"a": (7, 1)}, {"b": (6, 1)})
        update(scheduler, first)  # a wants a third block
        assert scheduler.schedule() is None
        assert later.in_flight
        update(scheduler, second)
        assert scheduled(schedule(scheduler)) == {"a": (8, 1)}
        assert later.state is SequenceState.WAITING


class TestFreedSlots:
    def test_a_finished_request_frees_its_slot_even_when_nothing_runs(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        step(scheduler)
        scheduler.finish("a", FinishReason.STOP)
        assert scheduler.has_work
        output = step(scheduler)
        assert (output.slices, freed(output)) == ((), (0,))
        assert not scheduler.has_work
        assert scheduler.schedule() is None

    def test_a_slot_changes_hands_in_one_output(self) -> None:
        scheduler = create_scheduler(max_num_seqs=1)
        add(scheduler, "a", "b")
        step(scheduler)
        scheduler.finish("a", FinishReason.STOP)
        output = schedule(scheduler)
        assert freed(output) == (0,)
        assert [(piece.request_id, piece.kv_slot) for piece in output.slices] == [("b", 0)]

    def test_freed_slots_of_a_failed_output_are_told_again(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b")
        step(scheduler)
        scheduler.finish("a", FinishReason.ABORT)
        lost = schedule(scheduler)
        assert freed(lost) == (0,)
        scheduler.requeue(lost)
        assert set(freed(schedule(scheduler))) == {0, 1}

    def test_a_slot_that_changed_hands_in_a_failed_output_is_not_freed_under_its_new_owner(
        self,
    ) -> None:
        scheduler = create_scheduler(max_num_seqs=2)
        add(scheduler, "a", "b")
        step(scheduler)
        scheduler.finish("a", FinishReason.ABORT)
        lost = schedule(scheduler)  # frees slot 0, runs b
        add(scheduler, "c")
        behind = schedule(scheduler)
        assert [piece.kv_slot for piece in behind.slices] == [0]
        scheduler.requeue(lost)
        assert freed(schedule(scheduler)) == (1,)


class TestFinish:
    def test_waiting_running_and_unknown(self) -> None:
        scheduler = create_scheduler(max_num_seqs=1)
        running, waiting = add(scheduler, "a", "b")
        step(scheduler)
        assert scheduler.finish("b", FinishReason.ABORT)
        assert scheduler.finish("a", FinishReason.STOP)
        assert not scheduler.finish("a", FinishReason.ABORT)
        assert not scheduler.finish("never heard of", FinishReason.ABORT)
        assert (running.finish_reason, waiting.finish_reason) == (
            FinishReason.STOP,
            FinishReason.ABORT,
        )
        assert running.state is waiting.state is SequenceState.FINISHED
        assert scheduler.num_free_kv_blocks == scheduler.config.num_kv_blocks
        scheduler.check_integrity()

    def test_in_flight_is_marked_now_and_swept_with_its_token_dropped(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a")
        output = schedule(scheduler)
        assert scheduler.finish("a", FinishReason.ABORT)
        assert not scheduler.finish("a", FinishReason.STOP)
        assert scheduler.num_running == 1
        assert scheduler.schedule() is None
        assert update(scheduler, output) == []
        assert sequence.output_token_ids == []
        assert sequence.finish_reason is FinishReason.ABORT
        assert scheduler.num_running == 0
        assert freed(schedule(scheduler)) == (0,)

    def test_a_row_without_a_token_may_fail_alone(self) -> None:
        scheduler = create_scheduler()
        failed, neighbour = add(scheduler, "a", "b")
        output = schedule(scheduler)
        scheduler.finish("a", FinishReason.ERROR)
        assert scheduler.update(output, {"b": TOKEN}) == [neighbour]
        assert failed.state is SequenceState.FINISHED


class TestRequeue:
    def test_sequences_replay_with_the_tokens_they_have(self) -> None:
        scheduler = create_scheduler()
        first, second = add(scheduler, "a", "b")
        step(scheduler)
        lost = schedule(scheduler)
        assert scheduler.requeue(lost) == [first, second]
        assert (first.num_replays, first.num_preemptions) == (1, 1)
        replay = schedule(scheduler)
        assert scheduled(replay) == {"a": (0, 5), "b": (0, 5)}
        assert set(freed(replay)) == {0, 1}

    def test_a_late_result_of_a_requeued_output_changes_nothing(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a")
        lost = schedule(scheduler)
        scheduler.requeue(lost)
        replay = schedule(scheduler)
        assert update(scheduler, lost) == []
        assert scheduler.requeue(lost) == []
        assert sequence.in_flight
        assert update(scheduler, replay) == ["a"]

    def test_one_that_was_finished_meanwhile_ends(self) -> None:
        scheduler = create_scheduler()
        aborted, other = add(scheduler, "a", "b")
        lost = schedule(scheduler)
        scheduler.finish("a", FinishReason.ABORT)
        assert scheduler.requeue(lost) == [other]
        assert aborted.state is SequenceState.FINISHED

    def test_preempt_all_counts_a_replay_only_for_what_is_blamed(self) -> None:
        scheduler = create_scheduler()
        blamed, flying = add(scheduler, "a", "b")
        step(scheduler)
        output = schedule(scheduler)
        scheduler.update(output, {"a": TOKEN, "b": TOKEN})
        lost = schedule(scheduler, create_budget(max_num_decodes=1))  # takes a
        schedule(scheduler, create_budget(max_num_decodes=1))  # takes b
        assert scheduler.preempt_all({lost.micro_batch_id}) == [blamed, flying]
        assert (blamed.num_replays, flying.num_replays) == (1, 0)
        assert scheduler.num_running == 0
        assert scheduler.num_free_kv_blocks == scheduler.config.num_kv_blocks

    def test_preempt_all_empties_every_slot_of_the_stages_that_are_left(self) -> None:
        scheduler = create_scheduler(max_num_seqs=3)
        add(scheduler, "a")
        step(scheduler)
        scheduler.finish("a", FinishReason.ABORT)
        schedule(scheduler)  # its freed slot never reaches a stage
        scheduler.preempt_all()
        assert set(freed(schedule(scheduler))) == {0, 1, 2}


def lose(scheduler: Scheduler, *outputs: SchedulerOutput) -> None:
    scheduler.preempt_all({output.micro_batch_id for output in outputs})
    scheduler.check_integrity()


class TestSuspects:
    def test_one_that_was_lost_twice_without_a_token_runs_alone(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b", "c")
        for _ in range(MAX_REPLAYS):
            output = schedule(scheduler)
            assert len(output.slices) == 3
            lose(scheduler, output)
        for name in ("a", "b", "c"):
            alone = schedule(scheduler)
            assert scheduled(alone) == {name: (0, 4)}
            assert scheduler.schedule() is None  # nothing beside it
            update(scheduler, alone)
        assert len(schedule(scheduler).slices) == 3

    def test_a_token_clears_it_and_the_count_begins_again(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a")
        for _ in range(20):
            lose(scheduler, schedule(scheduler))
            assert sequence.num_replays == 1
            step(scheduler)
            assert sequence.num_replays == 0
            if sequence.at_max_tokens:
                break

    def test_it_waits_for_all_that_is_in_flight(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        step(scheduler)
        flying = schedule(scheduler)
        add(scheduler, "b")
        for _ in range(MAX_REPLAYS):
            failed = schedule(scheduler)
            assert scheduled(failed) == {"b": (0, 4)}
            scheduler.requeue(failed)
        assert scheduled(schedule(scheduler)) == {}  # slots are freed, and nothing runs
        update(scheduler, flying)
        assert scheduled(schedule(scheduler)) == {"b": (0, 4)}

    def test_it_takes_the_room_it_needs_from_others(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4, max_num_seqs=2)
        add(scheduler, "a", num_prompt=12, max_tokens=4)
        for _ in range(MAX_REPLAYS):
            lose(scheduler, schedule(scheduler))
        scheduler.hand_over(suspect := next(iter(scheduler.waiting)))
        add(scheduler, "b", "c", num_prompt=7, max_tokens=4)
        step(scheduler)
        assert scheduler.num_free_kv_blocks < 3
        scheduler.adopt(suspect)
        assert scheduled(schedule(scheduler)) == {"a": (0, 12)}

    def test_one_that_ends_is_no_suspect_any_more(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b")
        for _ in range(MAX_REPLAYS):
            lose(scheduler, schedule(scheduler))
        for name in ("a", "b"):
            assert scheduler.finish(name, FinishReason.ERROR)
        scheduler.check_integrity()
        add(scheduler, "c", "d")
        assert len(schedule(scheduler).slices) == 2


class TestCapacity:
    def test_four_times_more_than_fits_all_complete(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=16, max_num_seqs=16)
        names = [f"r{index}" for index in range(16)]
        sequences = add(scheduler, *names, num_prompt=7, max_tokens=9)
        outputs, peak = run_to_the_end(scheduler)
        assert outputs == dict.fromkeys(names, [TOKEN] * 9)
        assert peak == 16
        assert {sequence.finish_reason for sequence in sequences} == {FinishReason.LENGTH}
        assert scheduler.num_free_kv_blocks == 16

    def test_at_least_95_percent_of_the_kv_tokens_are_in_use_at_once(self) -> None:
        scheduler = create_scheduler(
            num_kv_blocks=20, kv_block_size=16, max_num_batched_tokens=512, max_model_len=320
        )
        sequences = add(scheduler, "a", "b", "c", "d", num_prompt=72, max_tokens=8)
        for _ in range(8):
            step(scheduler)
        num_used = sum(sequence.num_computed_tokens for sequence in sequences)
        assert num_used >= 0.95 * scheduler.config.num_kv_tokens

    def test_one_request_may_fill_the_kv_memory_alone(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4, kv_block_size=4)
        add(scheduler, "a", "b", num_prompt=8, max_tokens=8)
        outputs, _ = run_to_the_end(scheduler)
        assert [len(output) for output in outputs.values()] == [8, 8]


class TestHeldSequences:
    """It is not known yet which token may follow their last."""

    def test_one_that_runs_misses_micro_batches_and_no_other_does(self) -> None:
        scheduler = create_scheduler()
        held, _ = add(scheduler, "a", "b")
        step(scheduler)
        held.is_held = True
        assert scheduled(step(scheduler)) == {"b": (4, 1)}
        assert scheduled(step(scheduler)) == {"b": (5, 1)}
        held.is_held = False
        assert scheduled(step(scheduler)) == {"a": (4, 1), "b": (6, 1)}

    def test_one_that_lost_its_kv_waits_and_is_passed(self) -> None:
        scheduler = create_scheduler()
        (held,) = add(scheduler, "a")
        step(scheduler)
        held.is_held = True
        lose(scheduler)
        assert scheduler.schedule() is not None  # tells the stages of the slot
        assert scheduler.schedule() is None
        add(scheduler, "b")
        assert scheduled(step(scheduler)) == {"b": (0, 4)}
        held.is_held = False
        assert scheduled(step(scheduler)) == {"b": (4, 1), "a": (0, 5)}

    def test_a_suspect_does_not_run_before_it_is_known(self) -> None:
        scheduler = create_scheduler()
        (held,) = add(scheduler, "a")
        step(scheduler)
        for _ in range(MAX_REPLAYS):
            lose(scheduler, schedule(scheduler))
        held.is_held = True
        scheduler.schedule()
        assert scheduler.schedule() is None
        held.is_held = False
        assert scheduled(schedule(scheduler)) == {"a": (0, 5)}

    def test_one_can_end(self) -> None:
        scheduler = create_scheduler()
        (held,) = add(scheduler, "a")
        step(scheduler)
        held.is_held = True
        assert scheduler.finish("a", FinishReason.STOP)
        schedule(scheduler)
        assert not scheduler.has_work
