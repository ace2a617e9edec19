from typing import Any

import pytest

from coordinator.scheduler.load import Load
from coordinator.scheduler.step_times import StepTimes
from coordinator.scheduler.throttle import MAX_SLOWDOWN, MIN_PREFILL_TOKENS, step_budget
from stagecoach.contract.stage_timings import StageTimings


def create_load(**changes: Any) -> Load:
    fields = {"num_decodes": 0, "num_prefills": 0, "num_prefill_tokens": 0, "empty_kv_share": 1.0}
    return Load(**{**fields, **changes})


def create_times(*points: tuple[int, int]) -> StepTimes:
    times = StepTimes()
    for num_tokens, compute_ns in points:
        times.add(num_tokens, [StageTimings(0, compute_ns, 0, 0)] * 2)
    return times


def budget(load: Load, *, depth: int = 3, times: StepTimes | None = None) -> tuple[int, int]:
    found = step_budget(load, depth=depth, max_num_batched_tokens=2048, times=times or StepTimes())
    return found.max_num_decodes, found.max_num_prefill_tokens


@pytest.mark.parametrize(("num_decodes", "expected"), [(1, 1), (3, 1), (4, 2), (96, 32), (97, 33)])
def test_decodes_are_divided_evenly_rounded_up(num_decodes: int, expected: int) -> None:
    assert budget(create_load(num_decodes=num_decodes))[0] == expected


def test_prompts_alone_are_divided_among_the_micro_batches_they_can_fill() -> None:
    assert budget(create_load(num_prefills=1, num_prefill_tokens=900))[1] == 900
    assert budget(create_load(num_prefills=2, num_prefill_tokens=900))[1] == 450
    assert budget(create_load(num_prefills=9, num_prefill_tokens=900))[1] == 300


def test_prefill_beside_decodes_takes_what_they_may_feel_and_no_more() -> None:
    times = create_times((8, 20_000), (64, 20_000), (512, 160_000))
    load = create_load(num_decodes=8, num_prefills=1, num_prefill_tokens=2000)
    num_decodes, num_prefill_tokens = budget(load, depth=1, times=times)
    slowest_ns = times.of(num_decodes + num_prefill_tokens).slowest_ns
    assert slowest_ns == pytest.approx(MAX_SLOWDOWN * 20_000, rel=0.02)
    assert num_prefill_tokens > 64


def test_prefill_falls_to_its_minimum_when_little_kv_memory_is_empty() -> None:
    load = create_load(num_decodes=8, num_prefills=1, num_prefill_tokens=2000)
    whole = budget(load)[1]
    half = budget(
        create_load(num_decodes=8, num_prefills=1, num_prefill_tokens=2000, empty_kv_share=0.5)
    )[1]
    least = budget(
        create_load(num_decodes=8, num_prefills=1, num_prefill_tokens=2000, empty_kv_share=0.04)
    )[1]
    assert whole > half > least == MIN_PREFILL_TOKENS


def test_times_lie_on_a_line_between_what_was_measured() -> None:
    times = create_times((8, 1000), (16, 2000))
    assert times.of(12).slowest_ns == pytest.approx(1500)
    assert times.of(12).total_ns == pytest.approx(3000)
    assert times.of(32).slowest_ns == pytest.approx(4000)
    assert times.of(4, fixed_share=0.0).slowest_ns == pytest.approx(500)
    assert times.max_num_tokens(1500) == 12
    assert times.max_num_tokens(4000) == 32


def test_times_that_nothing_confirms_any_more_are_dropped() -> None:
    times = create_times((1, 1000), (64, 64_000))
    for _ in range(2048):
        times.add(8, [StageTimings(0, 9000, 0, 0)])
    assert times.of(64).slowest_ns == pytest.approx(8 * 9000)
