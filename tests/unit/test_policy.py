"""A second policy is one class: queue, victim, prompts and moves between lanes follow its rank."""

import pytest

from coordinator.core.sequence import Sequence
from coordinator.scheduler import Scheduler
from coordinator.scheduler.policy import FirstComeFirstServed, Policy
from tests.schedulers import (
    TOKEN,
    ShortestFirst,
    add,
    create_scheduler,
    lose,
    run_to_the_end,
    schedule,
    scheduled,
    step,
)

LENGTHS = {"long": 9, "short": 3, "middle": 6, "short too": 3}


def add_all(scheduler: Scheduler) -> dict[str, Sequence]:
    return {
        name: add(scheduler, name, num_prompt=num_prompt)[0] for name, num_prompt in LENGTHS.items()
    }


def waiting(scheduler: Scheduler) -> list[str]:
    scheduler.check_integrity()
    return [sequence.request_id for sequence in scheduler.waiting]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (FirstComeFirstServed(), ["long", "short", "middle", "short too"]),
        (ShortestFirst(), ["short", "short too", "middle", "long"]),
    ],
)
def test_the_queue_follows_the_rank_and_then_who_came_first(
    policy: Policy, order: list[str]
) -> None:
    scheduler = create_scheduler(policy=policy)
    add_all(scheduler)
    assert waiting(scheduler) == order


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (FirstComeFirstServed(), ["short", "middle", "long", "new"]),
        (ShortestFirst(), ["short", "new", "middle", "long"]),
    ],
)
def test_one_that_ran_before_goes_in_front_of_its_rank(policy: Policy, order: list[str]) -> None:
    scheduler = create_scheduler(policy=policy)
    for name in ("short", "middle", "long"):
        add(scheduler, name, num_prompt=LENGTHS[name])
    output = schedule(scheduler)
    add(scheduler, "new", num_prompt=LENGTHS["short"])
    lose(scheduler, output)
    assert waiting(scheduler) == order


@pytest.mark.parametrize(
    ("policy", "victim"), [(FirstComeFirstServed(), "later"), (ShortestFirst(), "long")]
)
def test_the_last_in_the_order_is_preempted(policy: Policy, victim: str) -> None:
    scheduler = create_scheduler(policy=policy, num_kv_blocks=4, max_num_batched_tokens=5)
    add(scheduler, "long", num_prompt=5)
    step(scheduler)
    add(scheduler, "later", num_prompt=3)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert waiting(scheduler) == [victim]


@pytest.mark.parametrize(
    ("policy", "senior"), [(FirstComeFirstServed(), "long"), (ShortestFirst(), "middle")]
)
def test_the_prompt_of_the_lowest_rank_goes_on(policy: Policy, senior: str) -> None:
    scheduler = create_scheduler(policy=policy, max_num_batched_tokens=4)
    add(scheduler, "long", num_prompt=11)
    step(scheduler)
    add(scheduler, "middle", num_prompt=8)
    assert scheduled(step(scheduler)) == {senior: (4 if senior == "long" else 0, 4)}


def test_a_short_prompt_of_higher_rank_does_not_pass_the_senior() -> None:
    class LongestFirst:
        def rank(self, sequence: Sequence) -> tuple[int, ...]:
            return (-sequence.num_prompt_tokens,)

    orders = []
    for policy in (FirstComeFirstServed(), LongestFirst()):
        scheduler = create_scheduler(policy=policy, max_num_batched_tokens=8)
        add(scheduler, "long", num_prompt=20)
        add(scheduler, "short", num_prompt=2)
        orders.append(scheduled(step(scheduler)))
    assert orders == [{"short": (0, 2), "long": (0, 6)}, {"long": (0, 8)}]


@pytest.mark.parametrize("policy", [FirstComeFirstServed(), ShortestFirst()])
def test_those_that_move_to_another_scheduler_wait_there_in_the_same_order(policy: Policy) -> None:
    left, right = create_scheduler(policy=policy), create_scheduler(policy=policy)
    add(left, "ran", "ran too", num_prompt=4)
    lose(left, schedule(left))
    add_all(left)
    before = waiting(left)
    for sequence in left.hand_over_all():
        right.adopt(sequence)
    assert waiting(left) == []
    assert waiting(right) == before


def test_the_order_among_those_that_wait_there_already_is_by_rank() -> None:
    left, right = create_scheduler(policy=ShortestFirst()), create_scheduler(policy=ShortestFirst())
    add(left, "a", num_prompt=5)
    add(left, "b", num_prompt=2)
    add(right, "c", num_prompt=3)
    add(right, "d", num_prompt=5)
    for sequence in left.hand_over_all():
        right.adopt(sequence)
    assert waiting(right) == ["b", "c", "d", "a"]


def test_all_complete_when_memory_is_short_whatever_the_order() -> None:
    scheduler = create_scheduler(policy=ShortestFirst(), num_kv_blocks=8, max_num_seqs=6)
    for index in range(12):
        add(scheduler, f"r{index}", num_prompt=1 + 5 * index % 13, max_tokens=9)
    outputs, _ = run_to_the_end(scheduler)
    assert outputs == {f"r{index}": [TOKEN] * 9 for index in range(12)}
