"""What the scheduler does after a loss: replays, and requests that may be to blame."""

from coordinator.core.limits import MAX_BLAMES
from coordinator.core.request import FinishReason
from coordinator.core.sequence import SequenceState
from tests.schedulers import (
    TOKEN,
    add,
    create_budget,
    create_scheduler,
    freed,
    lose,
    schedule,
    scheduled,
    step,
    update,
)


class TestRequeue:
    def test_sequences_replay_with_the_tokens_they_have(self) -> None:
        scheduler = create_scheduler()
        first, second = add(scheduler, "a", "b")
        step(scheduler)
        lost = schedule(scheduler)
        assert scheduler.requeue(lost) == [first, second]
        assert (first.num_blames, first.num_replays, first.num_preemptions) == (1, 1, 0)
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

    def test_preempt_all_replays_all_and_blames_only_what_was_in_a_blamed_micro_batch(self) -> None:
        scheduler = create_scheduler()
        blamed, flying = add(scheduler, "a", "b")
        step(scheduler)
        output = schedule(scheduler)
        scheduler.update(output, {"a": (TOKEN,), "b": (TOKEN,)})
        lost = schedule(scheduler, create_budget(max_num_decodes=1))  # takes a
        schedule(scheduler, create_budget(max_num_decodes=1))  # takes b
        assert scheduler.preempt_all({lost.micro_batch_id}) == [blamed, flying]
        assert (blamed.num_blames, flying.num_blames) == (1, 0)
        assert (blamed.num_replays, flying.num_replays) == (1, 1)
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


class TestSuspects:
    def test_one_that_was_lost_twice_without_a_token_runs_alone(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", "b", "c")
        for _ in range(MAX_BLAMES):
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
            assert sequence.num_blames == 1
            step(scheduler)
            assert sequence.num_blames == 0
            if sequence.at_max_tokens:
                break

    def test_it_waits_for_all_that_is_in_flight(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        step(scheduler)
        flying = schedule(scheduler)
        add(scheduler, "b")
        for _ in range(MAX_BLAMES):
            failed = schedule(scheduler)
            assert scheduled(failed) == {"b": (0, 4)}
            scheduler.requeue(failed)
        assert scheduled(schedule(scheduler)) == {}  # slots are freed, and nothing runs
        update(scheduler, flying)
        assert scheduled(schedule(scheduler)) == {"b": (0, 4)}

    def test_it_takes_the_room_it_needs_from_others(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=4, max_num_seqs=2)
        add(scheduler, "a", num_prompt=12, max_tokens=4)
        for _ in range(MAX_BLAMES):
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
        for _ in range(MAX_BLAMES):
            lose(scheduler, schedule(scheduler))
        for name in ("a", "b"):
            assert scheduler.finish(name, FinishReason.ERROR)
        scheduler.check_integrity()
        add(scheduler, "c", "d")
        assert len(schedule(scheduler).slices) == 2
