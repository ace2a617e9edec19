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
from coordinator.core.step import LogitsRow
from coordinator.sampling import TokenSampler
from coordinator.sampling.noise import noise_key
from stagecoach.contract.errors import InternalError, InvalidArgumentError
from stagecoach.contract.logits_request import LogitsRequest

torch.set_num_threads(1)

VOCAB_SIZE = 600
PROMPT = (3, 5, 5, 8)
OUTPUT = (5, 13, 13, 13, 21)
NUM_DRAWS = 4000
GOLDEN_DRAWS = [422, 504, 40, 398, 253, 517, 166, 58]


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
def test_draws_from_the_distribution_of_transformers(params: dict[str, Any]) -> None:
    """Over many seeds; the chance that a right sampler fails is one in ten thousand, and fixed."""
    logits = make_logits()
    temperature = params.get("temperature", 1.0)
    row = make_row(logits, temperature)
    counts = np.zeros(VOCAB_SIZE)
    for seed in range(NUM_DRAWS):
        sampling_params = SamplingParams(**{"temperature": 1.0, "seed": seed, **params})
        counts[make_sampler(sampling_params).sample(row)] += 1
    probabilities = expected_probabilities(logits, sampling_params).numpy()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * NUM_DRAWS
    often = expected >= 5  # all others count as one
    observed = [*counts[often], counts[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    pairs = [(seen, mean) for seen, mean in zip(observed, wanted, strict=True) if mean > 0]
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
    num_free = len(pairs) - 1
    # Wilson and Hilferty: the cube root of chi-square over its degrees is nearly normal.
    if num_free:
        spread = 2 / (9 * num_free)
        score = ((statistic / num_free) ** (1 / 3) - (1 - spread)) / spread**0.5
        assert score < 3.72
    else:
        assert statistic < 1e-6


def test_rounding_of_the_logits_changes_hardly_a_draw() -> None:
    """Drawing by inverse distribution over ranks, 39 of 1 500 changed under this noise."""
    generator = np.random.default_rng(0)
    num_changed = 0
    for seed in range(1500):
        logits = torch.from_numpy(generator.standard_normal(VOCAB_SIZE).astype(np.float32) * 3)
        rounded = logits + torch.from_numpy(
            generator.standard_normal(VOCAB_SIZE).astype(np.float32) * 1e-4
        )
        sampler = make_sampler(SamplingParams(temperature=1.0, seed=seed))
        num_changed += sampler.sample(make_row(logits)) != sampler.sample(make_row(rounded))
    assert num_changed <= 1


def test_golden_draws() -> None:
    """A seed gives these tokens in every release that does not say otherwise."""
    logits = torch.arange(VOCAB_SIZE, dtype=torch.float32).sin() * 3
    found = []
    for seed in range(8):
        sampler = TokenSampler(
            SamplingParams(temperature=0.8, seed=seed), prompt_token_ids=(), vocab_size=VOCAB_SIZE
        )
        found.append(sampler.sample(make_row(logits, 0.8)))
    assert found == GOLDEN_DRAWS


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
            {"temperature": 0.5},
            LogitsRequest(
                row=4,
                num_candidates=1,
                temperature=0.5,
                num_contenders=4,
                noise_key=noise_key(0, len(OUTPUT)),
            ),
        ),
        (
            {"temperature": 1.0, "presence_penalty": 1.0},
            LogitsRequest(
                row=4,
                num_candidates=1,
                temperature=1.0,
                token_ids=(5, 13, 21),
                num_contenders=7,
                noise_key=noise_key(0, len(OUTPUT)),
            ),
        ),
        (
            {"temperature": 1.0, "presence_penalty": 1.0, "top_p": 0.9},
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
    fields = (
        "row",
        "num_candidates",
        "temperature",
        "token_ids",
        "num_contenders",
        "noise_key",
    )
    assert all(getattr(request, name) == getattr(expected, name) for name in fields)


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
