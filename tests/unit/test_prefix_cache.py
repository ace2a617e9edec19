"""What the scheduler shares, keeps and gives up. Blocks of 4 tokens; tokens sampled are all 7."""

from typing import Any

import pytest

from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence
from coordinator.core.step import SchedulerOutput
from coordinator.scheduler import Scheduler, SchedulerConfig
from coordinator.scheduler.prefix_index import chain_hash
from stagecoach.contract.slot_ops import ForkSlot, FreeSlot, TruncateSlot
from tests.schedulers import adopt

TOKEN = 7
SHARED = tuple(range(100, 112))
"""Three blocks."""


def create_scheduler(**changes: Any) -> Scheduler:
    limits: dict[str, Any] = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 4,
        "max_model_len": 128,
        "kv_block_size": 4,
        "num_kv_blocks": 64,
        "prefix_cache": True,
    }
    return Scheduler(SchedulerConfig(**(limits | changes)))


def add(
    scheduler: Scheduler,
    request_id: str,
    *suffix: int,
    prompt: tuple[int, ...] = SHARED,
    max_tokens: int = 4,
    cache_salt: str | None = None,
) -> Sequence:
    return adopt(
        scheduler,
        Request(
            request_id=request_id,
            prompt_token_ids=(*prompt, *suffix),
            max_tokens=max_tokens,
            cache_salt=cache_salt,
        ),
    )


def schedule(scheduler: Scheduler) -> SchedulerOutput:
    output = scheduler.schedule()
    scheduler.check_integrity()
    assert output is not None
    return output


def land(scheduler: Scheduler, output: SchedulerOutput) -> None:
    sampled = {piece.request_id: (TOKEN,) for piece in output.slices if piece.num_sampled_rows}
    for sequence in scheduler.update(output, sampled):
        if sequence.at_max_tokens:
            scheduler.finish(sequence.request_id, FinishReason.LENGTH)
    scheduler.check_integrity()


def step(scheduler: Scheduler) -> SchedulerOutput:
    output = schedule(scheduler)
    land(scheduler, output)
    return output


def finish_all(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        step(scheduler)


def starts(output: SchedulerOutput) -> dict[str, int]:
    return {piece.request_id: piece.start_position for piece in output.slices}


class TestSharing:
    def test_a_finished_sequence_leaves_its_full_blocks_to_the_next(self) -> None:
        scheduler = create_scheduler()
        first = add(scheduler, "a", 1, 2)
        finish_all(scheduler)
        second = add(scheduler, "b", 3, 4, 5)
        output = step(scheduler)
        assert output.slot_ops == (FreeSlot(1), ForkSlot(0, 1, 12))
        assert starts(output) == {"b": 12}
        assert output.slices[0].token_ids == (3, 4, 5)
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)
        assert scheduler.num_prefix_query_tokens == 14 + 15
        assert scheduler.num_prefix_hit_tokens == 12

    def test_a_partly_filled_block_is_dropped_on_the_stages_too(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", 1, 2, max_tokens=1)
        step(scheduler)
        assert schedule(scheduler).slot_ops == (TruncateSlot(0, 12),)
        assert scheduler.num_cached_kv_blocks == 3
        assert scheduler.num_free_kv_blocks == 64

    def test_a_running_sequence_shares_what_is_back_and_not_what_is_in_flight(self) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, "a", 1, 2, max_tokens=20)
        step(scheduler)
        in_flight = schedule(scheduler)  # the third block of a
        second = add(scheduler, "b", 3)
        output = schedule(scheduler)
        assert output.slot_ops == (FreeSlot(1), ForkSlot(0, 1, 8))
        assert starts(output) == {"b": 8}
        land(scheduler, output)
        land(scheduler, in_flight)
        third = add(scheduler, "c", 4)
        assert starts(step(scheduler))["c"] == 12
        assert (second.num_cached_tokens, third.num_cached_tokens) == (8, 12)

    def test_generated_tokens_are_shared_like_those_of_a_prompt(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", max_tokens=6)
        finish_all(scheduler)
        follow_up = add(scheduler, "b", *[TOKEN] * 6, 1, 2)
        step(scheduler)
        assert follow_up.num_cached_tokens == 16

    def test_the_last_token_of_a_prompt_is_always_computed(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        finish_all(scheduler)
        again = add(scheduler, "b")
        assert starts(step(scheduler)) == {"b": 8}
        assert again.num_cached_tokens == 8

    def test_a_slot_that_holds_nothing_else_is_taken_over_without_a_fork(self) -> None:
        scheduler = create_scheduler(max_num_seqs=1)
        add(scheduler, "a", max_tokens=2)
        finish_all(scheduler)
        add(scheduler, "b", 1, 2)
        output = step(scheduler)
        assert (output.slot_ops, starts(output)) == ((), {"b": 12})
        assert output.slices[0].kv_slot == 0

    def test_the_only_slot_is_taken_over_though_it_holds_more(self) -> None:
        scheduler = create_scheduler(max_num_seqs=1)
        add(scheduler, "a", 1, 2, 3, 4, max_tokens=2)
        finish_all(scheduler)
        add(scheduler, "b", 5, 6, 7)
        output = step(scheduler)
        assert (output.slot_ops, starts(output)) == ((), {"b": 12})

    def test_different_salts_share_nothing(self) -> None:
        scheduler = create_scheduler()
        for name, salt in (("a", None), ("b", "x"), ("c", "y")):
            sequence = add(scheduler, name, 1, cache_salt=salt)
            finish_all(scheduler)
            assert sequence.num_cached_tokens == 0
        assert add(scheduler, "d", 2, cache_salt="x").num_cached_tokens == 0
        assert starts(step(scheduler)) == {"d": 12}

    def test_off_shares_and_keeps_nothing(self) -> None:
        scheduler = create_scheduler(prefix_cache=False)
        for name in "ab":
            add(scheduler, name, 1)
            assert starts(step(scheduler)) == {name: 0}
            finish_all(scheduler)
        assert scheduler.num_cached_kv_blocks == 0

    def test_a_conversation_keeps_one_slot_however_many_turns_it_has(self) -> None:
        scheduler = create_scheduler(num_kv_slots=16)
        add(scheduler, "fork me", 1, 2, 3, 4)
        finish_all(scheduler)
        turns = SHARED
        for turn in range(5):
            add(scheduler, f"turn {turn}", prompt=turns, max_tokens=6)
            finish_all(scheduler)
            turns += (*[TOKEN] * 6, 50 + turn, 51)
        num_conversation_blocks = len(turns) // 4
        assert scheduler.num_cached_kv_blocks <= num_conversation_blocks + 1

    def test_twins_that_ran_side_by_side_are_kept_once(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a")
        add(scheduler, "b")
        finish_all(scheduler)
        assert scheduler.num_cached_kv_blocks == 3


class TestPrefixesInTheMaking:
    LONG = tuple(range(200, 240))
    """Ten blocks."""

    def create(self, **changes: Any) -> Scheduler:
        limits = {"max_num_batched_tokens": 16, "max_num_seqs": 16, "min_awaited_tokens": 8}
        return create_scheduler(**(limits | changes))

    def test_requests_that_come_together_compute_their_prefix_once(self) -> None:
        scheduler = self.create()
        sequences = [add(scheduler, name, i, prompt=self.LONG) for i, name in enumerate("abcdefgh")]
        num_tokens = 0
        while any(not sequence.output_token_ids for sequence in sequences):
            output = step(scheduler)
            num_tokens += sum(
                len(piece.token_ids) for piece in output.slices if piece.start_position <= 40
            )
        assert num_tokens == 40 + 8
        assert [sequence.num_cached_tokens for sequence in sequences] == [0] + [40] * 7

    def test_without_the_cache_each_computes_its_own(self) -> None:
        scheduler = self.create(prefix_cache=False, max_num_batched_tokens=64)
        add(scheduler, "a", prompt=self.LONG)
        add(scheduler, "b", prompt=self.LONG)
        assert starts(step(scheduler)) == {"a": 0, "b": 0}

    def test_another_salt_waits_for_nobody(self) -> None:
        scheduler = self.create(max_num_batched_tokens=64)
        for salt in (None, "x", "y"):
            add(scheduler, f"{salt}", prompt=self.LONG[:20], cache_salt=salt)
        assert starts(step(scheduler)) == {"None": 0, "x": 0, "y": 0}

    def test_a_short_prefix_is_not_waited_for(self) -> None:
        scheduler = self.create(min_awaited_tokens=16)
        add(scheduler, "a", 1, prompt=self.LONG[:6], max_tokens=20)
        add(scheduler, "b", 2, prompt=self.LONG[:6], max_tokens=20)
        assert starts(step(scheduler)) == {"a": 0, "b": 0}

    def test_what_is_alike_beyond_the_cached_part_is_waited_for(self) -> None:
        scheduler = self.create()
        add(scheduler, "old", prompt=self.LONG[:12])
        finish_all(scheduler)
        add(scheduler, "a", 1, prompt=self.LONG)
        late = add(scheduler, "b", 2, prompt=self.LONG)
        assert starts(step(scheduler)) == {"a": 12}
        finish_all(scheduler)
        assert late.num_cached_tokens == 40

    @pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
    def test_when_the_one_that_computes_ends_the_next_goes_on(self, reason: FinishReason) -> None:
        scheduler = self.create()
        add(scheduler, "a", 1, prompt=self.LONG)
        add(scheduler, "b", 2, prompt=self.LONG)
        third = add(scheduler, "c", 3, prompt=self.LONG)
        assert starts(step(scheduler)) == {"a": 0}
        scheduler.finish("a", reason)
        assert starts(step(scheduler)) == {"b": 16 if reason is FinishReason.ABORT else 0}
        finish_all(scheduler)
        assert third.num_cached_tokens == 40

    def test_when_the_one_that_computes_is_lost_all_go_on(self) -> None:
        scheduler = self.create()
        add(scheduler, "a", 1, prompt=self.LONG)
        step(scheduler)
        add(scheduler, "b", 2, prompt=self.LONG)
        in_flight = schedule(scheduler)
        assert starts(in_flight) == {"a": 16}
        assert scheduler.schedule() is None, "b waits for what is in flight"
        scheduler.requeue(in_flight)
        assert starts(step(scheduler)) == {"a": 0}
        scheduler.preempt_all()
        assert starts(step(scheduler)) == {"a": 0}
        finish_all(scheduler)

    def test_a_long_prompt_lends_its_place_only_for_what_is_shared(self) -> None:
        """The long one is not the oldest; a short one waits for its beginning."""
        scheduler = self.create(max_model_len=1024, num_kv_blocks=256)
        add(scheduler, "oldest", prompt=tuple(range(300)))
        step(scheduler)
        add(scheduler, "other", prompt=tuple(range(1000, 1100)))
        step(scheduler)
        long = add(scheduler, "long", prompt=(*self.LONG, *range(500, 600)))
        while long.kv_slot is None:
            step(scheduler)
        short = add(scheduler, "short", 2, prompt=self.LONG)
        for _ in range(8):
            if short.output_token_ids:
                break
            step(scheduler)
        assert short.num_cached_tokens == 40
        assert long.num_computed_tokens < 60
        finish_all(scheduler)


class TestEviction:
    def test_the_least_recently_used_prefix_is_given_up_first_and_from_its_end(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=12)
        for name, start in (("old", 20), ("older", 40), ("newest", 60)):
            add(scheduler, name, prompt=tuple(range(start, start + 12)), max_tokens=1)
            finish_all(scheduler)
        refresh = add(scheduler, "refresh", prompt=tuple(range(20, 32)), max_tokens=1)
        finish_all(scheduler)
        assert refresh.num_cached_tokens == 8
        assert scheduler.num_cached_kv_blocks == 9
        add(scheduler, "large", prompt=tuple(range(80, 100)), max_tokens=1)
        assert step(scheduler).slot_ops == (TruncateSlot(1, 4),), "slot 1 is that of `older`"
        assert scheduler.num_free_kv_blocks == scheduler.num_cached_kv_blocks == 12
        again = add(scheduler, "again", prompt=tuple(range(40, 52)), max_tokens=1)
        step(scheduler)
        assert again.num_cached_tokens == 4

    def test_retained_slots_are_given_up_for_sequences(self) -> None:
        scheduler = create_scheduler(max_num_seqs=2)
        for start in (20, 40):
            add(scheduler, f"{start}", prompt=tuple(range(start, start + 8)))
            finish_all(scheduler)
        add(scheduler, "a", prompt=(1, 2, 3))
        add(scheduler, "b", prompt=(4, 5, 6))
        output = step(scheduler)
        assert starts(output) == {"a": 0, "b": 0}
        assert output.slot_ops == (FreeSlot(0), FreeSlot(1))

    def test_a_full_cache_keeps_no_request_waiting_and_preempts_none(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=16)
        for start in range(200, 1000, 50):
            add(scheduler, f"{start}", prompt=tuple(range(start, start + 16)), max_tokens=1)
            finish_all(scheduler)
        assert scheduler.num_cached_kv_blocks == scheduler.num_free_kv_blocks == 16
        large = add(scheduler, "large", prompt=tuple(range(40)), max_tokens=24)
        assert starts(step(scheduler)) == {"large": 0}
        finish_all(scheduler)
        assert (large.num_preemptions, len(large.output_token_ids)) == (0, 24)

    def test_a_preempted_sequence_resumes_with_the_blocks_that_nobody_took(self) -> None:
        scheduler = create_scheduler(num_kv_blocks=9)
        add(scheduler, "a", prompt=tuple(range(15)), max_tokens=12)
        later = add(scheduler, "b", prompt=tuple(range(50, 65)), max_tokens=3)
        while starts(output := step(scheduler)) != {"a": 20}:
            assert later.num_preemptions == 0
        # a: 21 tokens want a sixth block; b holds four with 16.
        assert output.slot_ops == (TruncateSlot(1, 12),)
        assert later.num_preemptions == 1
        scheduler.finish("a", FinishReason.STOP)
        assert starts(step(scheduler)) == {"b": 12}
        assert later.num_cached_tokens == 0, "the client's prompt was computed"


class TestFailures:
    def test_nothing_is_kept_of_a_sequence_that_failed(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", 1)
        step(scheduler)
        scheduler.finish("a", FinishReason.ERROR)
        assert schedule(scheduler).slot_ops == (FreeSlot(0),)
        assert scheduler.num_cached_kv_blocks == 0

    def test_a_failed_micro_batch_gives_up_its_slots_and_all_that_is_retained(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", 1, 2, 3, 4, max_tokens=2)
        finish_all(scheduler)
        add(scheduler, "b", 5)
        lost = schedule(scheduler)
        assert starts(lost) == {"b": 12}
        scheduler.requeue(lost)
        assert scheduler.num_cached_kv_blocks == 0
        replay = schedule(scheduler)
        assert {FreeSlot(0), FreeSlot(1)} == set(replay.slot_ops)
        assert starts(replay) == {"b": 0}

    def test_the_slot_of_a_failed_micro_batch_is_emptied_though_it_held_sound_blocks(self) -> None:
        scheduler = create_scheduler()
        add(scheduler, "a", 1)
        step(scheduler)
        scheduler.requeue(schedule(scheduler))
        assert scheduler.num_cached_kv_blocks == 0
        replay = schedule(scheduler)
        assert (replay.slot_ops, starts(replay)) == ((FreeSlot(0),), {"a": 0})

    @pytest.mark.parametrize("num_steps", [1, 2])
    def test_an_abort_in_flight_leaves_what_the_micro_batch_computed(self, num_steps: int) -> None:
        scheduler = create_scheduler(max_num_batched_tokens=8)
        add(scheduler, "a", 1, 2)
        for _ in range(num_steps - 1):
            step(scheduler)
        output = schedule(scheduler)
        scheduler.finish("a", FinishReason.ABORT)
        land(scheduler, output)
        assert scheduler.num_cached_kv_blocks == num_steps + 1

    def test_after_the_loss_of_a_stage_it_is_only_told_to_empty_its_slots(self) -> None:
        """A stage that came back holds nothing; a truncate would be refused as out of step."""
        scheduler = create_scheduler(max_num_seqs=2)
        add(scheduler, "a", 1, max_tokens=1)
        step(scheduler)  # a truncate is to be told
        scheduler.preempt_all()
        assert scheduler.num_cached_kv_blocks == 0
        assert schedule(scheduler).slot_ops == (FreeSlot(0), FreeSlot(1))
        add(scheduler, "b", 1)
        assert starts(step(scheduler)) == {"b": 0}


def test_block_names_are_computed_once_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waiting nor decoding may cost a hash of the whole sequence each step."""
    calls: list[bytes] = []

    def counted(parent: bytes, token_ids: list[int]) -> bytes:
        calls.append(parent)
        return chain_hash(parent, token_ids)

    monkeypatch.setattr("coordinator.scheduler.kv_memory.chain_hash", counted)
    scheduler = create_scheduler(max_num_seqs=1)
    add(scheduler, "a", max_tokens=20)
    add(scheduler, "b", 1, max_tokens=20)
    finish_all(scheduler)
    assert len(calls) == (12 + 19) // 4 + (13 + 19) // 4
