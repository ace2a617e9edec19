"""Rows of prompts, reduced, against whole rows that are sorted and summed up one by one."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.step import PromptLogits as ReadPromptLogits
from coordinator.sampling.prompt_logprobs import prompt_logprobs
from stage_server.compute.prompt_logits import PromptLogitsReduction
from stage_server.core.batch import PromptLogits
from stage_server.emulation.logits import HashedLogits
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.roofline import activation_memory

VOCAB_SIZE = 23

# Few distinct values, so that ties are common, as they are in float16.
rows = st.lists(
    st.sampled_from([-3.0, 0.0, 0.5, 1.0, 1.5, 4.0]), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE
)


@st.composite
def requests(draw: st.DrawFn, num_rows: int) -> list[PromptLogitsRequest]:
    """Some rows, rising, with gaps and without."""
    found = []
    row = 0
    while row < num_rows:
        first_row = draw(st.integers(row, num_rows))
        end = draw(st.integers(first_row, num_rows))
        if first_row < end:
            ids = [draw(st.integers(0, VOCAB_SIZE - 1)) for _ in range(first_row, end)]
            num_candidates = draw(st.integers(0, 20))
            found.append(
                PromptLogitsRequest(
                    first_row=first_row, token_ids=ids, num_candidates=num_candidates
                )
            )
        row = max(end, row + 1)
    return found


def reduce_prompts(
    logits: torch.Tensor, wanted: list[PromptLogitsRequest]
) -> tuple[PromptLogits, ...]:
    """The hidden states are the numbers of the rows."""
    token_ids = torch.tensor([i for one in wanted for i in one.token_ids])
    return PromptLogitsReduction(
        lambda hidden: logits[hidden[:, 0]].clone(),
        torch.arange(len(logits))[:, None],
        wanted,
        token_ids,
        VOCAB_SIZE,
    ).rows()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), batch=st.lists(rows, min_size=1, max_size=9), at_once=st.integers(1, 4))
def test_each_row_has_what_a_sort_of_it_has(
    data: st.DataObject, batch: list[list[float]], at_once: int
) -> None:
    wanted = data.draw(requests(len(batch)))
    if not wanted:
        return
    with patch.object(activation_memory, "_PROMPT_LOGITS_BYTES", 4 * VOCAB_SIZE * at_once):
        found = reduce_prompts(torch.tensor(batch), wanted)
    for request, reduced in zip(wanted, found, strict=True):
        assert reduced.first_row == request.first_row
        assert len(reduced.token_logits) == len(request.token_ids)
        for place, token_id in enumerate(request.token_ids):
            row = batch[request.first_row + place]
            order = sorted(range(VOCAB_SIZE), key=lambda i: (-row[i], i))
            total = math.log(sum(math.exp(value - max(row)) for value in row))
            assert reduced.log_sum_exps[place].item() == pytest.approx(total, abs=1e-5)
            assert reduced.token_logits[place].item() == row[token_id] - max(row)
            assert reduced.token_ranks[place].item() == order.index(token_id) + 1
            head = order[: request.num_candidates]
            assert reduced.candidate_ids[place].tolist() == head
            assert reduced.candidate_logits[place].tolist() == [row[i] - max(row) for i in head]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_says_so(bad: float) -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[1, 3] = bad
    wanted = [PromptLogitsRequest(first_row=0, token_ids=(1, 2), num_candidates=2)]
    (reduced,) = reduce_prompts(logits, wanted)
    assert reduced.log_sum_exps.isfinite().tolist() == [True, False]


@given(
    hashes=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    num_candidates=st.integers(0, 20),
    data=st.data(),
)
def test_an_emulated_stage_reduces_its_rows_alike(
    hashes: list[int], num_candidates: int, data: st.DataObject
) -> None:
    emulated = HashedLogits(VOCAB_SIZE)
    ids = [data.draw(st.integers(0, VOCAB_SIZE - 1)) for _ in hashes]
    request = PromptLogitsRequest(first_row=0, token_ids=ids, num_candidates=num_candidates)
    found = emulated.reduce_prompt(hashes, request)
    (expected,) = reduce_prompts(torch.stack([emulated.row(one) for one in hashes]), [request])
    assert found.token_ranks.tolist() == expected.token_ranks.tolist()
    assert found.candidate_ids.tolist() == expected.candidate_ids.tolist()
    torch.testing.assert_close(found.log_sum_exps, expected.log_sum_exps)
    torch.testing.assert_close(found.token_logits, expected.token_logits)
    torch.testing.assert_close(found.candidate_logits, expected.candidate_logits)


@given(num_tokens=st.integers(1, 12), num_top=st.integers(0, 3), size=st.integers(1, 5))
def test_pieces_of_log_probabilities_are_the_whole(
    num_tokens: int, num_top: int, size: int
) -> None:
    whole = logprobs_of(num_tokens, num_top)
    pieces = list(whole.pieces(size))
    assert [one for piece in pieces for one in piece] == list(whole)
    assert [piece.start for piece in pieces] == list(range(3, 3 + num_tokens, size))
    assert sum(piece.num_bytes for piece in pieces) == whole.num_bytes
    assert max(map(len, pieces)) <= size
    for place, one in enumerate(whole):
        assert one.logprob == pytest.approx(-place - 0.5)
        assert one.rank == place + 1
        assert [i for i, _ in one.top] == [num_top * place + k for k in range(num_top)]
        assert [value for _, value in one.top] == pytest.approx([-k - 0.5 for k in range(num_top)])


def logprobs_of(num_tokens: int, num_top: int) -> PromptLogprobs:
    return prompt_logprobs(
        ReadPromptLogits(
            log_sum_exps=num_tokens * [0.5],
            token_logits=[-float(i) for i in range(num_tokens)],
            token_ranks=range(1, num_tokens + 1),
            candidate_ids=range(num_tokens * num_top),
            candidate_logits=num_tokens * [-float(k) for k in range(num_top)],
        ),
        start=3,
    )
