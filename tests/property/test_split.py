"""The planner's split is the best there is: against trying every one of them."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.plan import Plan, make_plan
from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.roofline.devices import GPUS, Gpu
from stagecoach.roofline.kv_memory import KV_BLOCK_SIZE, kv_memory_bytes
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.split import Options, SplitScore, StageFit, best_split, score
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import step_time
from stagecoach.roofline.work import Work


def all_splits(num_layers: int, num_stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to divide layers over stages, at least one each."""
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        yield tuple(end - start for start, end in pairwise((0, *cuts, num_layers)))


@st.composite
def create_options(draw: st.DrawFn) -> Options:
    """Any table: times need not grow with layers, and any entry may not fit. Ties are common."""
    num_layers = draw(st.integers(1, 7))
    fit = st.none() | st.builds(StageFit, st.integers(1, 12), st.integers(0, 5))
    row = st.lists(fit, min_size=num_layers, max_size=num_layers).map(lambda fits: [None, *fits])
    return draw(st.lists(row, min_size=1, max_size=4))


@settings(max_examples=400)
@given(create_options())
def test_no_split_scores_better(options: Options) -> None:
    splits = all_splits(len(options[0]) - 1, len(options))
    scores = [found for split in splits if (found := score(options, split)) is not None]
    split = best_split(options)
    if split is None:
        assert scores == []
    else:
        assert score(options, split) == min(scores)


MODEL = ModelShape.of(open_model("shape:llama-2-13b").config)
CONTEXT_TOKENS = 512


@cache
def figures_of(gpu: Gpu, start: int, count: int) -> tuple[int, int] | None:
    """Time in ns and tokens of KV of a stage; None when it does not fit."""
    cost = StageCost(model=MODEL, layers=LayerRange(start, start + count))
    time = step_time(cost, Work.decode(1, CONTEXT_TOKENS), gpu)
    try:
        kv_bytes = kv_memory_bytes(cost, gpu)
    except InsufficientMemoryError:
        return None
    block_bytes = cost.kv_bytes_per_token * KV_BLOCK_SIZE
    return round(time.total_s * 1e9), kv_bytes // block_bytes * KV_BLOCK_SIZE


def score_of(gpus: Sequence[Gpu], split: Sequence[int]) -> SplitScore | None:
    """Worked out from the costs of the stages; None when one does not fit."""
    times_ns, kv_tokens = [], []
    start = 0
    for gpu, count in zip(gpus, split, strict=True):
        figures = figures_of(gpu, start, count)
        start += count
        if figures is None:
            return None
        times_ns.append(figures[0])
        kv_tokens.append(figures[1])
    if min(kv_tokens) < CONTEXT_TOKENS:
        return None
    return SplitScore(max(times_ns), sum(times_ns), -min(kv_tokens))


def split_of(plan: Plan) -> list[int]:
    return [len(stage.cost.layers) for stage in plan.stages]


@settings(max_examples=15)
@given(st.lists(st.sampled_from(list(GPUS.values())), min_size=1, max_size=3))
def test_no_order_and_no_split_of_unequal_gpus_is_better(gpus: list[Gpu]) -> None:
    splits = list(all_splits(MODEL.num_layers, len(gpus)))
    scores = [
        found
        for order in permutations(gpus)
        for split in splits
        if (found := score_of(order, split)) is not None
    ]
    if not scores:
        with pytest.raises(InsufficientMemoryError):
            make_plan(MODEL, gpus, context_tokens=CONTEXT_TOKENS, min_kv_tokens=CONTEXT_TOKENS)
        return
    plan = make_plan(MODEL, gpus, context_tokens=CONTEXT_TOKENS, min_kv_tokens=CONTEXT_TOKENS)
    ordered = [stage.gpu for stage in plan.stages]
    assert [gpus[stage.gpu_index] for stage in plan.stages] == ordered
    assert sorted(stage.gpu_index for stage in plan.stages) == list(range(len(gpus)))
    assert score_of(ordered, split_of(plan)) == min(scores)
    given_order = [found for split in splits if (found := score_of(gpus, split)) is not None]
    if given_order and min(given_order) == min(scores):
        assert not plan.is_reordered
