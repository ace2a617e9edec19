"""Reduced logits against a full stable sort."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.sampling.noise import gumbels, uniforms
from stage_server.compute.candidates import highest
from stage_server.core.batch import LogitsRow
from stagecoach.contract.logits_request import LogitsRequest
from tests.reduced_logits import reduce_logits

VOCAB_SIZE = 23

# Few distinct values, so that ties are common, as they are in float16.
rows = st.lists(
    st.sampled_from([-3.0, 0.0, 0.5, 1.0, 1.5, 4.0]), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE
)
requests = st.builds(
    LogitsRequest,
    row=st.integers(0, 5),
    num_candidates=st.integers(1, VOCAB_SIZE + 2),
    min_mass=st.none() | st.floats(0.05, 1.0),
    min_gap=st.none() | st.floats(0.0, 6.0),
    temperature=st.floats(0.2, 3.0),
    token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=3).map(tuple),
    wants_unit_log_sum_exp=st.booleans(),
    num_contenders=st.integers(0, VOCAB_SIZE),
    noise_key=st.integers(0, 2**64 - 1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(rows, requests), min_size=1, max_size=4))
def test_candidates_are_the_head_of_a_stable_sort_and_cover_what_was_asked(
    batch: list[tuple[list[float], LogitsRequest]],
) -> None:
    logits = torch.tensor([row for row, _ in batch])
    for (row, request), reduced in zip(
        batch, reduce_logits(logits, [request for _, request in batch]), strict=True
    ):
        assert reduced.row == request.row
        relative = [math.exp((value - max(row)) / request.temperature) for value in row]
        assert math.isclose(reduced.log_sum_exp, math.log(sum(relative)), abs_tol=1e-5)
        if request.wants_unit_log_sum_exp:
            unit_sum = sum(math.exp(value - max(row)) for value in row)
            assert reduced.unit_log_sum_exp is not None
            assert math.isclose(reduced.unit_log_sum_exp, math.log(unit_sum), abs_tol=1e-5)
        else:
            assert reduced.unit_log_sum_exp is None
        order = sorted(range(VOCAB_SIZE), key=lambda i: (-row[i], i))
        head = order[: request.num_candidates]
        mass = sum(relative[i] for i in head) / sum(relative)
        conditions = []
        if request.min_mass is not None:
            conditions.append(mass >= request.min_mass - 1e-9)
        if request.min_gap is not None:
            conditions.append(row[head[0]] - row[head[-1]] >= request.min_gap)
        is_enough = not conditions or any(conditions)
        # The stage sums in float32: rounding may tip the balance, either way.
        is_close = request.min_mass is not None and abs(mass - request.min_mass) < 1e-6
        if reduced.full is not None:
            assert reduced.full.tolist() == row
            assert not reduced.candidate_ids
            assert request.num_candidates >= VOCAB_SIZE or not is_enough or is_close
        else:
            assert reduced.candidate_ids == head
            assert reduced.candidate_logits == [row[i] for i in head]
            assert reduced.token_logits == [row[i] for i in request.token_ids]
            assert request.num_candidates < VOCAB_SIZE
            assert is_enough or is_close
            check_contenders(row, request, reduced)


@pytest.mark.parametrize("may_wait", [True, False], ids=["cpu", "card"])
@settings(max_examples=200, deadline=None)
@given(
    batch=st.lists(
        st.lists(
            st.sampled_from([-math.inf, -3.0, -0.0, 0.0, 0.5, 4.0]),
            min_size=VOCAB_SIZE,
            max_size=VOCAB_SIZE,
        ),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(0, VOCAB_SIZE),
)
def test_the_highest_are_the_head_of_a_stable_sort(
    may_wait: bool, batch: list[list[float]], k: int
) -> None:
    assert_head_of_a_sort(torch.tensor(batch), k, may_wait=may_wait)


@pytest.mark.parametrize("may_wait", [True, False], ids=["cpu", "card"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [2, 20, 256])
def test_logits_of_16_bits_have_ties_that_go_to_the_lowest_ids(
    may_wait: bool, dtype: torch.dtype, k: int
) -> None:
    generator = torch.Generator().manual_seed(k)
    logits = (3 * torch.randn(24, 32000, generator=generator)).to(dtype).float()
    lowest = logits.topk(k).values[:, -1:]
    are_tied = (logits >= lowest).sum(dim=1) > k
    assert k == 2 or are_tied.any(), "there is something to decide"
    assert_head_of_a_sort(logits, k, may_wait=may_wait)


def assert_head_of_a_sort(logits: torch.Tensor, k: int, *, may_wait: bool) -> None:
    ids, values = highest(logits, k, may_wait=may_wait)
    for row, found, its_logits in zip(logits.tolist(), ids.tolist(), values.tolist(), strict=True):
        head = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert found == head
        assert its_logits == [row[i] for i in head]


def check_contenders(row: list[float], request: LogitsRequest, reduced: LogitsRow) -> None:
    """They are the best of a sort by logit and noise in float64, but for what is about equal."""
    ids = list(reduced.contender_ids)
    assert len(ids) == len(set(ids)) == request.num_contenders
    assert list(reduced.contender_logits) == [row[i] for i in ids]
    scores = np.array(row) / request.temperature + gumbels(
        uniforms(request.noise_key, np.arange(VOCAB_SIZE))
    )
    if ids and len(ids) < VOCAB_SIZE:
        assert scores[ids].min() > np.delete(scores, ids).max() - 1e-4


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 300, 5000, 32000])
@pytest.mark.parametrize("num_contenders", [1, 4, 60])
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 100.0])
def test_the_best_by_logit_and_noise_is_among_the_contenders(
    vocab_size: int, num_contenders: int, temperature: float
) -> None:
    num_contenders = min(num_contenders, vocab_size)
    generator = torch.Generator().manual_seed(vocab_size)
    num_rows = 40
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 4
    logits[::2] = logits[::2].round()
    logits[:, 0] += torch.linspace(0, 40, num_rows)  # up to rows that hold nearly one token
    requests = [
        LogitsRequest(
            row=i,
            num_candidates=1,
            temperature=temperature,
            num_contenders=num_contenders,
            noise_key=2**64 - 1 - i,
        )
        for i in range(num_rows)
    ]
    for i, row in enumerate(reduce_logits(logits, requests)):
        if row.full is not None:
            assert vocab_size == 1
            continue
        scores = logits[i].double().numpy() / temperature
        scores += gumbels(uniforms(requests[i].noise_key, np.arange(vocab_size)))
        assert int(scores.argmax()) in row.contender_ids


def test_a_row_with_nan_says_so_and_leaves_its_neighbours_alone() -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[0, 3] = math.nan
    logits[1, 4] = 1.0
    request = LogitsRequest(row=0, num_candidates=1)
    broken, sound = reduce_logits(logits, [request, request])
    assert math.isnan(broken.log_sum_exp)
    assert sound.candidate_ids == [4]
