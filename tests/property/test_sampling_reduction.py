"""The sampler chooses the same token from the row it asked for as from the full row."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRequest, LogitsRow
from coordinator.sampling import TokenSampler
from stage_server import batch
from stage_server.logits import reduce_logits

torch.set_num_threads(1)

VOCAB_SIZES = (2, 7, 257, 700, 5000)


@st.composite
def sampling_params(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    token_ids = st.integers(0, vocab_size - 1)
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.02, 0.3, 0.7, 1.0, 1.5, 10.0])),
        top_p=draw(st.sampled_from([1.0, 0.99995, 0.95, 0.5, 1e-6])),
        top_k=draw(st.sampled_from([0, 0, 1, 3, 40, 300, 100_000])),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-12, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.4, -0.3])),
        logit_bias=draw(st.dictionaries(token_ids, st.floats(-100, 100), max_size=3)),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def logits_rows(draw: st.DrawFn, vocab_size: int) -> torch.Tensor:
    """Peaked, flat or tied logits."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 3.0, 8.0]))
    logits = generator.standard_normal(vocab_size) * scale + draw(st.sampled_from([-40, 0, 15]))
    if draw(st.booleans()):
        logits = np.round(logits)
    return torch.from_numpy(logits.astype(np.float32))


def stage_answer(logits: torch.Tensor, request: LogitsRequest) -> LogitsRow:
    """What the last stage sends for a row."""
    wanted = batch.LogitsRequest(
        row=request.row,
        num_candidates=request.num_candidates,
        min_mass=request.min_mass,
        min_gap=request.min_gap,
        temperature=1.0 if request.temperature is None else request.temperature,
        token_ids=request.token_ids,
    )
    (row,) = reduce_logits(logits[None], [wanted])
    full: Any = None if row.full is None else row.full.numpy()
    return LogitsRow(
        row=row.row,
        log_sum_exp=float(np.float32(row.log_sum_exp)),
        candidate_ids=row.candidate_ids,
        candidate_logits=row.candidate_logits,
        token_logits=row.token_logits,
        full=full,
    )


def full_row(logits: torch.Tensor, request: LogitsRequest) -> LogitsRow:
    return stage_answer(
        logits,
        LogitsRequest(row=request.row, num_candidates=len(logits), temperature=request.temperature),
    )


@settings(max_examples=400, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES))
def test_reduced_row_gives_the_token_of_the_full_row(data: st.DataObject, vocab_size: int) -> None:
    params = data.draw(sampling_params(vocab_size))
    prompt = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12))
    sampler = TokenSampler(params, prompt_token_ids=prompt, vocab_size=vocab_size)
    for _ in range(4):
        logits = data.draw(logits_rows(vocab_size))
        request = sampler.logits_request(0)
        token_id = sampler.sample(stage_answer(logits, request))
        assert token_id == sampler.sample(full_row(logits, request))
        sampler.append(token_id)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_replayed_sampler_goes_on_like_the_uninterrupted_one(data: st.DataObject) -> None:
    params = data.draw(sampling_params(700))
    prompt = data.draw(st.lists(st.integers(0, 699), min_size=1, max_size=12))
    rows = [data.draw(logits_rows(700)) for _ in range(4)]
    sampler = TokenSampler(params, prompt_token_ids=prompt, vocab_size=700)
    token_ids: list[int] = []
    for logits in rows:
        replayed = TokenSampler(params, prompt_token_ids=prompt, vocab_size=700)
        for token_id in token_ids:
            replayed.append(token_id)
        request = sampler.logits_request(0)
        assert replayed.logits_request(0) == request
        row = stage_answer(logits, request)
        token_ids.append(sampler.sample(row))
        assert replayed.sample(row) == token_ids[-1]
        sampler.append(token_ids[-1])
