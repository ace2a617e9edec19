"""The scheduler when KV memory is short: who gives way, and how full it gets."""

from coordinator.core.request import FinishReason
from coordinator.core.sequence import SequenceState
from tests.schedulers import (
    TOKEN,
    add,
    create_budget,
    create_scheduler,
    freed,
    run_to_the_end,
    schedule,
    scheduled,
    step,
    update,
)


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
