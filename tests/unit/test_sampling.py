"""Each parameter against its definition in transformers, and what is asked of the last stage."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRequest, LogitsRow
from coordinator.sampling import TokenSampler
from coordinator.sampling.uniform import uniform
from protos.errors import InternalError, InvalidArgumentError

torch.set_num_threads(1)

VOCAB_SIZE = 600
PROMPT = (3, 5, 5, 8)
OUTPUT = (5, 13, 13, 13, 21)
NUM_DRAWS = 4000


def make_logits(seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB_SIZE, generator=generator) * scale


def make_row(logits: torch.Tensor, temperature: float = 1.0) -> LogitsRow:
    full: Any = logits.numpy()
    gaps = (logits.double() - logits.max()) / temperature
    return LogitsRow(
        row=0,
        log_sum_exp=gaps.logsumexp(0).item(),
        candidate_ids=[],
        candidate_logits=[],
        token_logits=[],
        full=full,
    )


def expected_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What transformers samples from; frequency and presence penalty it does not have."""
    processors = LogitsProcessorList()
    if params.logit_bias:
        bias: Any = {(token_id,): value for token_id, value in params.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(bias))
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    input_ids: Any = torch.tensor([PROMPT + OUTPUT])
    scores: Any = logits[None].clone()
    scores = processors(input_ids, scores)
    for token_id in set(OUTPUT):
        scores[0, token_id] -= params.frequency_penalty * OUTPUT.count(token_id)
        scores[0, token_id] -= params.presence_penalty
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(input_ids, scores)[0].double().softmax(0)


def make_sampler(params: SamplingParams) -> TokenSampler:
    sampler = TokenSampler(params, prompt_token_ids=PROMPT, vocab_size=VOCAB_SIZE)
    for token_id in OUTPUT:
        sampler.append(token_id)
    return sampler


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 5.0},
        {"top_k": 7},
        {"top_k": 550},
        {"top_p": 0.8},
        {"top_p": 0.999, "temperature": 3.0},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"min_p": 1e-6, "temperature": 3.0},
        {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "temperature": 0.8},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.5, "top_k": 5},
        {"presence_penalty": -1.5, "frequency_penalty": 0.7},
        {"logit_bias": {5: 6.0, 40: 9.0, 41: -100.0}, "top_p": 0.9},
        {
            "repetition_penalty": 1.2,
            "presence_penalty": 0.3,
            "frequency_penalty": -1.0,
            "logit_bias": {13: 2.5},
            "top_k": 30,
            "top_p": 0.9,
            "min_p": 0.02,
        },
    ],
    ids=str,
)
def test_draws_from_the_distribution_of_transformers(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spaced random numbers hit each token as often as its probability says."""
    sampling_params = SamplingParams(**{"temperature": 1.0, "seed": 0, **params})
    sampler = make_sampler(sampling_params)
    logits = make_logits()
    row = make_row(logits, sampling_params.temperature)
    counts = np.zeros(VOCAB_SIZE)
    for i in range(NUM_DRAWS):
        number = (i + 0.5) / NUM_DRAWS
        monkeypatch.setattr("coordinator.sampling.token_sampler.uniform", lambda *_, n=number: n)
        counts[sampler.sample(row)] += 1
    expected = expected_probabilities(logits, sampling_params).numpy()
    np.testing.assert_allclose(counts / NUM_DRAWS, expected, rtol=0, atol=1.01 / NUM_DRAWS)


def test_greedy_takes_the_highest_logit_and_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[[40, 17, 300]] = 2.0
    sampler = make_sampler(SamplingParams())
    assert sampler.sample(make_row(logits)) == 17


def test_greedy_penalties_change_the_choice() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[13], logits[400] = 5.0, 4.0
    assert make_sampler(SamplingParams()).sample(make_row(logits)) == 13
    penalized = make_sampler(SamplingParams(frequency_penalty=0.5))
    assert penalized.sample(make_row(logits)) == 400


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    logits[3], logits[400] = 5.0, 4.0
    params = SamplingParams(presence_penalty=2.0, frequency_penalty=2.0)
    assert make_sampler(params).sample(make_row(logits)) == 3
    repetition = SamplingParams(repetition_penalty=2.0)
    assert make_sampler(repetition).sample(make_row(logits)) == 400


def test_random_numbers_are_uniform_and_depend_on_seed_and_position_alone() -> None:
    numbers = np.array([uniform(7, position) for position in range(5000)])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / len(numbers)
    np.testing.assert_allclose(shares, 0.1, atol=0.02)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.05
    assert uniform(7, 3) == numbers[3]
    assert uniform(8, 3) != numbers[3]
    assert uniform(2**64 - 1, 2**64 - 1) < 1.0


def test_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    rows = [make_row(make_logits(seed, scale=0.5)) for seed in range(20)]

    def generate(seed: int) -> list[int]:
        sampler = TokenSampler(
            SamplingParams(temperature=1.0, seed=seed),
            prompt_token_ids=PROMPT,
            vocab_size=VOCAB_SIZE,
        )
        token_ids = []
        for row in rows:
            token_ids.append(sampler.sample(row))
            sampler.append(token_ids[-1])
        return token_ids

    assert generate(1) == generate(1)
    assert generate(1) != generate(2)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, LogitsRequest(row=4, num_candidates=1)),
        ({"temperature": 1.0, "top_k": 40}, LogitsRequest(row=4, num_candidates=40)),
        (
            {"logit_bias": {9: 1.0, 2: -1.0}},
            LogitsRequest(row=4, num_candidates=3, token_ids=(9, 2)),
        ),
        (
            {"temperature": 1.0, "top_k": 10, "presence_penalty": 1.0},
            LogitsRequest(row=4, num_candidates=13, token_ids=(5, 13, 21)),
        ),
        (
            {"repetition_penalty": 1.1},
            LogitsRequest(row=4, num_candidates=6, token_ids=(3, 5, 8, 13, 21)),
        ),
        (
            {"temperature": 0.5, "top_p": 0.9},
            LogitsRequest(row=4, num_candidates=256, min_mass=0.9001, temperature=0.5),
        ),
        (
            {"temperature": 0.5, "min_p": 0.1},
            LogitsRequest(
                row=4, num_candidates=256, min_gap=0.5 * math.log(10) + 1e-3, temperature=0.5
            ),
        ),
        (
            {"temperature": 1.0, "presence_penalty": 1.0},
            LogitsRequest(row=4, num_candidates=VOCAB_SIZE),
        ),
        ({"temperature": 1.0, "top_k": 500}, LogitsRequest(row=4, num_candidates=VOCAB_SIZE)),
    ],
    ids=str,
)
def test_asks_for_no_more_logits_than_the_parameters_need(
    params: dict[str, Any], expected: LogitsRequest
) -> None:
    request = make_sampler(SamplingParams(**{"seed": 0, **params})).logits_request(4)
    assert request.min_mass == pytest.approx(expected.min_mass)
    assert request.min_gap == pytest.approx(expected.min_gap)
    fields = ("row", "num_candidates", "temperature", "token_ids")
    assert all(getattr(request, name) == getattr(expected, name) for name in fields)


def test_temperature_alone_asks_for_the_mass_up_to_its_random_number() -> None:
    request = make_sampler(SamplingParams(temperature=1.0, seed=0)).logits_request(0)
    assert request.num_candidates == 256
    assert request.min_mass == pytest.approx(uniform(0, len(OUTPUT)) + 1e-4)


def test_many_changed_tokens_take_the_full_row() -> None:
    params = SamplingParams(repetition_penalty=1.1)
    sampler = TokenSampler(params, prompt_token_ids=range(500), vocab_size=VOCAB_SIZE)
    assert sampler.logits_request(0) == LogitsRequest(row=0, num_candidates=VOCAB_SIZE)
    logits = torch.zeros(VOCAB_SIZE)
    logits[100], logits[550] = 5.0, 4.9
    assert sampler.sample(make_row(logits)) == 550


def test_bias_of_many_tokens() -> None:
    params = SamplingParams(logit_bias=dict.fromkeys(range(500), -100.0))
    logits = torch.zeros(VOCAB_SIZE)
    logits[100], logits[550] = 5.0, 1.0
    assert make_sampler(params).sample(make_row(logits)) == 550


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_end_the_request(value: float) -> None:
    row = LogitsRow(
        row=0, log_sum_exp=value, candidate_ids=[1], candidate_logits=[0.0], token_logits=[]
    )
    with pytest.raises(InternalError, match="NaN or infinite"):
        make_sampler(SamplingParams()).sample(row)


@pytest.mark.parametrize("vocab_size", [32, 259, 511, 512, 32_000])
@pytest.mark.parametrize("logprobs", [None, 20])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=1.0, seed=1, top_p=0.9),
        SamplingParams(temperature=0.5, seed=1, top_k=200),
        SamplingParams(temperature=0.5, seed=1, top_k=20, logit_bias={3: 1.0}),
    ],
    ids=repr,
)
def test_no_answer_is_larger_than_the_full_row_that_a_stage_makes_room_for(
    vocab_size: int, logprobs: int | None, params: SamplingParams
) -> None:
    """With 259 tokens, 256 candidates took two rows' bytes, and a full stage refused the step."""
    sampler = TokenSampler(
        params, prompt_token_ids=PROMPT, vocab_size=vocab_size, logprobs=logprobs
    )
    request = sampler.logits_request(0)
    if request.num_candidates < vocab_size:
        assert 8 * request.num_candidates + 4 * len(request.token_ids) <= 4 * vocab_size


@pytest.mark.parametrize(
    ("token_id", "message"), [(1, "no log-sum-exp at temperature 1"), (2, "no logit of token 2")]
)
def test_logprobs_that_the_stage_left_out_end_the_request(token_id: int, message: str) -> None:
    temperature = 0.5 if token_id == 1 else 1.0
    sampler = TokenSampler(
        SamplingParams(temperature=temperature, seed=1),
        prompt_token_ids=PROMPT,
        vocab_size=VOCAB_SIZE,
        logprobs=0,
    )
    row = LogitsRow(
        row=0, log_sum_exp=0.1, candidate_ids=[1], candidate_logits=[0.0], token_logits=[]
    )
    with pytest.raises(InternalError, match=message):
        sampler.logprobs(row, token_id)


@pytest.mark.parametrize("highest", [3e38, -3e38])
def test_the_strongest_penalties_leave_the_largest_logits_finite(highest: float) -> None:
    for penalty in (0.001, 100.0):
        params = SamplingParams(temperature=1.0, seed=1, repetition_penalty=penalty)
        sampler = TokenSampler(params, prompt_token_ids=PROMPT, vocab_size=VOCAB_SIZE)
        token_id = sampler.sample(make_row(torch.full((VOCAB_SIZE,), highest)))
        assert (token_id in PROMPT) == (penalty < 1)


@pytest.mark.parametrize("penalty", [0.0, 5e-324, 1e-45, 0.0009, 100.5])
def test_a_penalty_that_would_make_logits_infinite_is_refused(penalty: float) -> None:
    """One of 5e-324 once divided a logit to infinity, which ended the engine."""
    with pytest.raises(InvalidArgumentError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=penalty)
