"""Guessed tokens in the scheduler: which slices carry them, and what is kept of them."""

from collections.abc import Callable

import pytest

from coordinator.core.request import FinishReason
from coordinator.core.sequence import Sequence
from coordinator.scheduler import Scheduler, SchedulerConfig, StepBudget
from stagecoach.contract.slot_ops import TruncateSlot
from tests.schedulers import add, schedule
from tests.scripted_drafts import ScriptedDrafter, flat

BUDGET = StepBudget(max_num_decodes=64, max_num_prefill_tokens=64, duration_ns=flat)


def create(
    *,
    num_kv_blocks: int = 16,
    prefix_cache: bool = True,
    max_num_sampled_rows: int | None = None,
) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            max_num_batched_tokens=64,
            max_num_seqs=4,
            max_model_len=64,
            kv_block_size=4,
            num_kv_blocks=num_kv_blocks,
            prefix_cache=prefix_cache,
            max_num_sampled_rows=max_num_sampled_rows,
        )
    )


def start(
    scheduler: Scheduler, name: str = "a", *, num_prompt: int = 6, max_tokens: int = 20
) -> Sequence:
    """A sequence of a prompt and its first token, which guesses 1, 2, 3, 4 and 5."""
    (sequence,) = add(scheduler, name, num_prompt=num_prompt, max_tokens=max_tokens)
    sequence.drafter = ScriptedDrafter((), [], lambda _: (1, 2, 3, 4, 5))
    scheduler.update(schedule(scheduler, BUDGET), {name: (50,)})
    return sequence


def test_a_decode_goes_on_with_guessed_tokens() -> None:
    scheduler = create()
    sequence = start(scheduler)
    (piece,) = schedule(scheduler, BUDGET).slices
    assert piece.token_ids == (50, 1, 2, 3, 4, 5)
    assert (piece.num_sampled_rows, piece.is_decode) == (6, True)
    assert sequence.num_tokens == 7


@pytest.mark.parametrize(
    ("sampled", "num_right"), [((9,), 0), ((1, 9), 1), ((1, 2, 3, 4, 5, 9), 5)]
)
def test_right_guesses_are_kept_and_the_kv_of_others_is_overwritten(
    sampled: tuple[int, ...], num_right: int
) -> None:
    scheduler = create()
    sequence = start(scheduler)
    scheduler.update(schedule(scheduler, BUDGET), {"a": sampled})
    assert sequence.output_token_ids == [50, *sampled]
    assert sequence.num_computed_tokens == 7 + num_right
    assert (scheduler.num_draft_tokens, scheduler.num_accepted_draft_tokens) == (5, num_right)
    (piece,) = schedule(scheduler, BUDGET).slices
    assert (piece.start_position, piece.token_ids[0]) == (7 + num_right, 9)


def test_nothing_is_guessed_beyond_the_last_token() -> None:
    scheduler = create()
    start(scheduler, max_tokens=4)
    (piece,) = schedule(scheduler, BUDGET).slices
    assert piece.token_ids == (50, 1, 2)


@pytest.mark.parametrize(("max_num_sampled_rows", "num_guessed"), [(4, 3), (1, 0)])
def test_no_more_rows_are_sampled_than_a_stage_can_answer(
    max_num_sampled_rows: int, num_guessed: int
) -> None:
    scheduler = create(max_num_sampled_rows=max_num_sampled_rows)
    start(scheduler)
    (piece,) = schedule(scheduler, BUDGET).slices
    assert (piece.num_drafts, piece.num_sampled_rows) == (num_guessed, num_guessed + 1)


def no_times(scheduler: Scheduler) -> StepBudget | None:
    return StepBudget(max_num_decodes=64, max_num_prefill_tokens=64)


def beside_a_prompt(scheduler: Scheduler) -> StepBudget | None:
    add(scheduler, "b")
    return BUDGET


def unlimited(scheduler: Scheduler) -> StepBudget | None:
    return None


@pytest.mark.parametrize("arrange", [no_times, beside_a_prompt, unlimited])
def test_nothing_is_guessed(arrange: Callable[[Scheduler], StepBudget | None]) -> None:
    scheduler = create()
    start(scheduler)
    assert schedule(scheduler, arrange(scheduler)).num_drafts == 0


def test_no_block_is_taken_for_guesses_that_another_sequence_may_want() -> None:
    scheduler = create(num_kv_blocks=5, prefix_cache=False)
    for sequence in add(scheduler, "a", "b", num_prompt=6, max_tokens=9):
        sequence.drafter = ScriptedDrafter((), [], lambda _: (1, 2, 3))
    scheduler.update(schedule(scheduler, BUDGET), {"a": (50,), "b": (50,)})
    pieces = schedule(scheduler, BUDGET).slices
    assert [len(piece.token_ids) for piece in pieces] == [1, 1]
    assert scheduler.num_preemptions == 0


def test_blocks_of_guesses_are_dropped_when_a_sequence_ends_under_way() -> None:
    """The stages hold four blocks; the first two are full without guesses, and kept for others."""
    scheduler = create()
    sequence = start(scheduler, num_prompt=7)
    output = schedule(scheduler, BUDGET)
    assert sequence.num_tokens + output.num_drafts == 13
    kv_slot = sequence.kv_slot
    assert kv_slot is not None
    scheduler.finish("a", FinishReason.ABORT)
    scheduler.update(output, {})
    assert schedule(scheduler).slot_ops == (TruncateSlot(kv_slot, 8),)
