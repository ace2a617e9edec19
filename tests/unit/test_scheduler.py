"""The scheduler step by step: what it takes, what runs next, and what ends frees."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.request import FinishReason
from coordinator.core.sequence import SequenceState
from coordinator.core.step import ScheduledSlice, SchedulerOutput
from coordinator.scheduler import Load, SchedulerConfig
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    InvalidArgumentError,
)
from tests.schedulers import (
    TOKEN,
    add,
    create_budget,
    create_scheduler,
    freed,
    schedule,
    scheduled,
    step,
    update,
)


@pytest.mark.parametrize(
    "field",
    [
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_model_len",
        "kv_block_size",
        "num_kv_blocks",
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
    def test_an_id_is_free_again_when_its_request_has_ended(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        with pytest.raises(AssertionError, match="an id stands for one request"):
            add(scheduler, "a")
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


class TestSchedule:
    def test_nothing_to_do_is_none(self) -> None:
        assert create_scheduler().schedule() is None

    def test_prefill_then_decode(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a", num_prompt=4)
        output = schedule(scheduler)
        (piece,) = output.slices
        assert piece.token_ids == (100, 101, 102, 103)
        assert piece.num_sampled_rows == 1
        assert sequence.in_flight
        assert update(scheduler, output) == ["a"]
        (piece,) = schedule(scheduler).slices
        assert (piece.start_position, piece.token_ids, piece.num_sampled_rows) == (4, (TOKEN,), 1)

    @pytest.mark.parametrize("tokens", [(8,), (8, 9), (8, 9, 10)])
    def test_update_keeps_the_drafts_that_proved_right(self, tokens: tuple[int, ...]) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a", num_prompt=4)
        step(scheduler)
        output = schedule(scheduler)
        (piece,) = output.slices
        drafted = piece._replace(token_ids=(TOKEN, 8, 9), num_sampled_rows=3)
        assert drafted.is_decode
        assert scheduler.update(replace(output, slices=(drafted,)), {"a": tokens}) == [sequence]
        scheduler.check_integrity()
        assert sequence.output_token_ids == [TOKEN, *tokens]
        assert sequence.num_computed_tokens == 4 + len(tokens)
        (piece,) = schedule(scheduler).slices
        assert (piece.start_position, piece.token_ids) == (4 + len(tokens), tokens[-1:])

    def test_a_sequence_that_ended_meanwhile_keeps_no_draft(self) -> None:
        scheduler = create_scheduler()
        (sequence,) = add(scheduler, "a", num_prompt=4)
        step(scheduler)
        output = schedule(scheduler)
        drafted = output.slices[0]._replace(token_ids=(TOKEN, 8, 9), num_sampled_rows=3)
        assert drafted.num_computed_tokens(0) == 1
        scheduler.finish("a", FinishReason.ABORT)
        assert scheduler.update(replace(output, slices=(drafted,)), {"a": (8, 9)}) == []
        scheduler.check_integrity()
        assert sequence.output_token_ids == [TOKEN]

    @pytest.mark.parametrize(
        ("num_tokens", "num_sampled_rows", "is_decode"),
        [(1, 1, True), (1, 0, False), (5, 1, False), (5, 0, False), (3, 3, True)],
    )
    def test_a_slice_decodes_when_every_row_is_sampled(
        self, num_tokens: int, num_sampled_rows: int, is_decode: bool
    ) -> None:
        piece = ScheduledSlice("a", 0, 0, (TOKEN,) * num_tokens, num_sampled_rows)
        output = SchedulerOutput(micro_batch_id=0, slices=(piece,), slot_ops=())
        assert piece.is_decode is is_decode
        assert sum(output.count_tokens()) == output.num_tokens == num_tokens
        assert output.count_tokens().num_decode_tokens == (num_tokens if is_decode else 0)
        assert output.is_prefill_only is not is_decode

    def test_prompt_longer_than_the_budget_runs_in_chunks_and_samples_once(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=4)
        add(scheduler, "a", num_prompt=10)
        seen = []
        for _ in range(4):
            output = schedule(scheduler)
            (piece,) = output.slices
            seen.append((piece.start_position, len(piece.token_ids), piece.num_sampled_rows))
            update(scheduler, output)
        assert seen == [(0, 4, 0), (4, 4, 0), (8, 2, 1), (10, 1, 1)]

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
        assert scheduler.update(output, {"b": (TOKEN,)}) == [neighbour]
        assert failed.state is SequenceState.FINISHED
