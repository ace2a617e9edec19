"""Who runs before whom: short and long prompts, what fits, what is held."""

from coordinator.core.limits import MAX_BLAMES
from coordinator.core.request import FinishReason
from coordinator.core.sequence import SequenceState
from coordinator.scheduler.entrance import MAX_PASSES
from tests.schedulers import add, create_scheduler, lose, schedule, scheduled, step


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
                if piece.num_sampled_rows:
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
        scheduler = create_scheduler(num_kv_blocks=30)
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
        for _ in range(MAX_BLAMES):
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
