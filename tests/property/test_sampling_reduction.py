"""The sampler chooses the same token from the row it asked for as from the full row."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRow
from coordinator.pipeline import wire
from coordinator.sampling import TokenSampler
from stagecoach.contract import tensor_codec
from stagecoach.contract.errors import InternalError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.v1 import stage_pb2
from tests.reduced_logits import reduce_logits

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
    """What the last stage sends for a row, as the coordinator reads it."""
    (row,) = reduce_logits(logits[None], [request])
    message = stage_pb2.LogitsRow(
        row=row.row,
        log_sum_exp=row.log_sum_exp,
        candidate_ids=row.candidate_ids,
        candidate_logits=row.candidate_logits,
        token_logits=row.token_logits,
        unit_log_sum_exp=row.unit_log_sum_exp,
        contender_ids=row.contender_ids,
        contender_logits=row.contender_logits,
    )
    if row.full is not None:
        tensor_codec.write_torch(row.full, message.full)
    return wire.logits_row(message, len(logits))


def full_row(logits: torch.Tensor, request: LogitsRequest) -> LogitsRow:
    return stage_answer(
        logits,
        LogitsRequest(row=request.row, num_candidates=len(logits), temperature=request.temperature),
    )


@settings(max_examples=150, deadline=None)
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


class AllowedTokens:
    """A constraint that allows the tokens it is told to."""

    is_ready = True
    is_complete = False
    error = InternalError("nothing is allowed")

    def __init__(self) -> None:
        self.allowed_ids = np.empty(0, dtype=np.int64)

    def append(self, token_id: int) -> None:
        assert token_id in self.allowed_ids

    def when_ready(self, on_ready: Callable[[], None]) -> None:
        raise AssertionError("it is always ready")

    def close(self) -> None:
        pass


@st.composite
def allowed_tokens(draw: st.DrawFn, vocab_size: int) -> npt.NDArray[np.int64]:
    """One token, a few, or nearly all of them."""
    sizes = [1, 2, 5, vocab_size // 3, vocab_size - 40, vocab_size - 1, vocab_size]
    num_allowed = draw(st.sampled_from(sizes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = generator.choice(vocab_size, size=max(1, min(num_allowed, vocab_size)), replace=False)
    return np.sort(chosen)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES))
def test_a_constraint_gives_the_token_of_the_row_with_all_others_at_minus_infinity(
    data: st.DataObject, vocab_size: int
) -> None:
    """The twin knows no constraint; an empty bias makes it sum the masked row up itself."""
    params = data.draw(sampling_params(vocab_size))
    twin_params = replace(params, logit_bias={0: 0.0, **params.logit_bias})
    constraint = AllowedTokens()
    logprobs = data.draw(st.sampled_from([None, 0, 3]))
    sampler = TokenSampler(
        params,
        prompt_token_ids=[0, 1],
        vocab_size=vocab_size,
        logprobs=logprobs,
        constraint=constraint,
    )
    twin = TokenSampler(twin_params, prompt_token_ids=[0, 1], vocab_size=vocab_size)
    for _ in range(4):
        logits = data.draw(logits_rows(vocab_size))
        constraint.allowed_ids = data.draw(allowed_tokens(vocab_size))
        masked = torch.full_like(logits, -torch.inf)
        masked[constraint.allowed_ids] = logits[constraint.allowed_ids]
        token_id = sampler.sample(stage_answer(logits, sampler.logits_request(0)))
        everything = LogitsRequest(row=0, num_candidates=vocab_size)
        assert token_id == twin.sample(full_row(masked, everything))
        assert token_id == sampler.sample(full_row(logits, everything))
        sampler.append(token_id)
        twin.append(token_id)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES))
def test_logprobs_are_the_log_softmax_of_the_whole_row_however_it_is_reduced(
    data: st.DataObject, vocab_size: int
) -> None:
    params = data.draw(sampling_params(vocab_size))
    num_top = data.draw(st.sampled_from([0, 1, 5, 20]))
    constraint = AllowedTokens() if data.draw(st.booleans()) else None
    sampler = TokenSampler(
        params,
        prompt_token_ids=[1],
        vocab_size=vocab_size,
        logprobs=num_top,
        constraint=constraint,
    )
    for _ in range(3):
        logits = data.draw(logits_rows(vocab_size))
        if constraint is not None:
            constraint.allowed_ids = data.draw(allowed_tokens(vocab_size))
        row = stage_answer(logits, sampler.logits_request(0))
        token_id = sampler.sample(row)
        found = sampler.logprobs(row, token_id)
        assert found is not None
        expected = torch.log_softmax(logits.double(), dim=0)
        assert math.isclose(found.logprob, expected[token_id].item(), abs_tol=2e-5)
        ranked = expected.sort(descending=True, stable=True)
        assert [i for i, _ in found.top] == ranked.indices[:num_top].tolist()
        top = [logprob for _, logprob in found.top]
        np.testing.assert_allclose(top, ranked.values[:num_top].numpy(), rtol=0, atol=2e-5)
        sampler.append(token_id)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES))
def test_asking_for_logprobs_changes_no_token(data: st.DataObject, vocab_size: int) -> None:
    params = data.draw(sampling_params(vocab_size))
    prompt = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12))
    plain = TokenSampler(params, prompt_token_ids=prompt, vocab_size=vocab_size)
    asked = TokenSampler(params, prompt_token_ids=prompt, vocab_size=vocab_size, logprobs=20)
    for _ in range(3):
        logits = data.draw(logits_rows(vocab_size))
        token_id = plain.sample(stage_answer(logits, plain.logits_request(0)))
        assert asked.sample(stage_answer(logits, asked.logits_request(0))) == token_id
        plain.append(token_id)
        asked.append(token_id)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES[1:]))
def test_an_end_that_comes_too_early_is_a_logit_of_minus_infinity(
    data: st.DataObject, vocab_size: int
) -> None:
    """The twin may end whenever it likes, but the row that it gets has no end."""
    params = data.draw(sampling_params(vocab_size))
    end_ids = data.draw(st.sets(st.integers(0, vocab_size - 1), max_size=3))
    min_tokens = data.draw(st.integers(0, 3))
    logprobs = data.draw(st.sampled_from([None, 0, 3]))
    sampler = TokenSampler(
        params,
        prompt_token_ids=[0, 1],
        vocab_size=vocab_size,
        logprobs=logprobs,
        min_tokens=min_tokens,
        end_token_ids=end_ids,
    )
    twin_params = replace(params, logit_bias={0: 0.0, **params.logit_bias})
    twin = TokenSampler(twin_params, prompt_token_ids=[0, 1], vocab_size=vocab_size)
    for num_tokens in range(5):
        logits = data.draw(logits_rows(vocab_size))
        masked = logits.clone()
        if num_tokens < min_tokens:
            masked[list(end_ids)] = -torch.inf
        row = stage_answer(logits, sampler.logits_request(0))
        token_id = sampler.sample(row)
        assert token_id not in end_ids or num_tokens >= min_tokens
        everything = LogitsRequest(row=0, num_candidates=vocab_size)
        assert token_id == twin.sample(stage_answer(masked, everything))
        found = sampler.logprobs(row, token_id)
        assert (found is None) == (logprobs is None)
        sampler.append(token_id)
        twin.append(token_id)
