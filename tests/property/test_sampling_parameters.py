"""The folds over sampling parameters against the formulas written out, and a mask with a hole."""

import math
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRow
from coordinator.sampling import TokenSampler
from coordinator.sampling.draw import HEAD_SIZE, kept_ranks, weigh
from coordinator.sampling.noise import noise_key
from coordinator.sampling.parameters import (
    FloatArray,
    Head,
    Mask,
    Need,
    Occurrences,
    Truncation,
    changes_of,
    joint_need,
    truncations_of,
)
from coordinator.sampling.ranking import Ranked, Ranking
from stagecoach.contract.logits_request import LogitsRequest

VOCAB_SIZES = (2, 40, 700, 9000)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.02, 0.3, 0.7, 1.0, 1.5, 10.0])),
        top_p=draw(st.sampled_from([1.0, 0.99995, 0.95, 0.5, 1e-6])),
        top_k=draw(st.sampled_from([0, 0, 1, 3, 40, 300, 100_000])),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-12, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.4, -0.3])),
        logit_bias=draw(st.dictionaries(st.integers(0, 1), st.floats(-100, 100), max_size=2)),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def logits_of_rows(draw: st.DrawFn, vocab_size: int) -> FloatArray:
    """Peaked, flat or tied float32 logits."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = generator.standard_normal(vocab_size) * draw(st.sampled_from([0.0, 0.1, 1.0, 8.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    return logits.astype(np.float32).astype(np.float64)


def full_ranking(logits: FloatArray) -> Ranking:
    full: Any = logits
    row = LogitsRow(
        row=0, log_sum_exp=0.0, candidate_ids=[], candidate_logits=[], token_logits=[], full=full
    )
    return Ranking(row, None)


def ranks_before_the_cut(ranking: Ranking, params: SamplingParams, total: float) -> Ranked:
    """Top-k, top-p and min-p in this order, each as a number of ranks."""
    ids, logits = ranking.top(ranking.size)
    weights = weigh(logits, logits[0], params.temperature)
    if params.top_k:
        weights = weights[: params.top_k]
        total = float(weights.sum())
    if params.top_p < 1.0:
        cumulative = np.cumsum(weights)
        weights = weights[: int(np.searchsorted(cumulative, params.top_p * total)) + 1]
    if params.min_p:
        weights = weights[: np.count_nonzero(weights >= params.min_p)]
    return Ranked(ids[: len(weights)], logits[: len(weights)])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES))
def test_masks_keep_what_the_cuts_keep(data: st.DataObject, vocab_size: int) -> None:
    params = data.draw(sampling_params())
    truncations = truncations_of(params)
    if not truncations:
        return
    logits = data.draw(logits_of_rows(vocab_size))
    ranking = full_ranking(logits)
    total = float(weigh(logits, logits.max(), params.temperature).sum())
    kept = kept_ranks(
        ranking,
        truncations,
        joint_need(truncations, params.temperature),
        params.temperature,
        total,
    )
    expected = ranks_before_the_cut(ranking, params, total)
    np.testing.assert_array_equal(kept.ids, expected.ids)
    np.testing.assert_array_equal(kept.logits, expected.logits)


def change_one_by_one(
    logits: FloatArray, tokens: Occurrences, params: SamplingParams
) -> FloatArray:
    """Each token by itself, in plain numbers."""
    changed = []
    for logit, bias, seen, num_output in zip(logits.tolist(), *map(list, tokens), strict=True):
        logit += bias
        if seen and params.repetition_penalty != 1.0:
            factor = params.repetition_penalty
            logit = logit * factor if logit < 0 else logit / factor
        logit -= params.frequency_penalty * num_output
        logit -= params.presence_penalty * (num_output > 0)
        changed.append(logit)
    return np.array(changed)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_changes_are_those_of_each_token_by_itself(data: st.DataObject) -> None:
    params = data.draw(sampling_params())
    num_tokens = data.draw(st.integers(0, 6))
    logits = data.draw(logits_of_rows(num_tokens))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    output_counts = generator.integers(0, 3, num_tokens)
    tokens = Occurrences(
        bias=generator.standard_normal(num_tokens) * bool(params.logit_bias),
        seen=output_counts + generator.integers(0, 2, num_tokens) > 0,
        output_counts=output_counts,
    )
    found = logits
    for change in changes_of(params):
        found = change.change(found, tokens)
    np.testing.assert_array_equal(found, change_one_by_one(logits, tokens, params))


def request_written_out(params: SamplingParams, vocab_size: int, prompt: list[int]) -> Any:
    """What the first token takes, case by case."""
    temperature = float(np.float32(params.temperature))
    max_candidates = max(HEAD_SIZE, vocab_size // 16)
    named = [*params.logit_bias]
    if params.repetition_penalty != 1.0:
        named += sorted(set(prompt) - set(named))
    counts_output = (
        params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    )
    is_changed = bool(params.logit_bias or counts_output)
    truncates = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    everything = LogitsRequest(row=0, num_candidates=vocab_size)
    if not truncates and len(named) <= max_candidates:
        assert params.seed is not None
        return LogitsRequest(
            row=0,
            num_candidates=1,
            temperature=temperature,
            token_ids=tuple(named),
            num_contenders=4 + len(named),
            noise_key=noise_key(params.seed, 0),
        )
    if params.top_k:
        num_candidates = params.top_k + len(named)
        if num_candidates > max_candidates:
            return everything
        return replaced(everything, num_candidates=num_candidates, token_ids=tuple(named))
    if is_changed:
        return everything
    return LogitsRequest(
        row=0,
        num_candidates=HEAD_SIZE,
        min_mass=min(1.0, params.top_p + 1e-4) if params.top_p < 1.0 else None,
        min_gap=1e-3 - temperature * math.log(params.min_p) if params.min_p else None,
        temperature=temperature,
    )


@settings(max_examples=300, deadline=None)
@given(params=sampling_params(), vocab_size=st.sampled_from(VOCAB_SIZES), prompt=st.data())
def test_the_joint_need_asks_for_what_the_cases_ask_for(
    params: SamplingParams, vocab_size: int, prompt: st.DataObject
) -> None:
    token_ids = prompt.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12))
    sampler = TokenSampler(params, prompt_token_ids=token_ids, vocab_size=vocab_size)
    expected = request_written_out(params, vocab_size, token_ids)
    num_pairs = expected.num_candidates + expected.num_contenders
    if 2 * num_pairs + len(expected.token_ids) > vocab_size:
        expected = replaced(expected, num_candidates=vocab_size, num_contenders=0, token_ids=())
    assert sampler.logits_request(0) == expected


@dataclass(frozen=True)
class WithoutTheLikeliest:
    """A truncation that is no cut: drops the highest ranks."""

    num_dropped: int
    full_row: bool = False

    def need(self, temperature: float) -> Need:
        return Need(full_row=self.full_row)

    def keep(self, head: Head) -> Mask:
        kept = np.ones(len(head.weights), dtype=np.bool_)
        kept[: min(self.num_dropped, len(kept) - 1)] = False
        return kept


def kept_of(
    logits: FloatArray, *truncations: Truncation, temperature: float = 1.0
) -> npt.NDArray[np.int64]:
    total = float(weigh(logits, logits.max(), temperature).sum())
    need = joint_need(truncations, temperature)
    return kept_ranks(full_ranking(logits), truncations, need, temperature, total).ids


def test_a_truncation_may_drop_the_likeliest_and_keep_the_rest_of_the_row() -> None:
    logits = -np.arange(3 * HEAD_SIZE) / 1000
    np.testing.assert_array_equal(
        kept_of(logits, WithoutTheLikeliest(2)), np.arange(2, 3 * HEAD_SIZE)
    )


def test_those_behind_it_see_only_what_it_left() -> None:
    (top_k,) = truncations_of(SamplingParams(temperature=1.0, top_k=3))
    (top_p,) = truncations_of(SamplingParams(temperature=1.0, top_p=0.5))
    logits = np.log([0.5, 0.2, 0.15, 0.1, 0.05])
    assert kept_of(logits, WithoutTheLikeliest(1), top_p).tolist() == [1, 2]
    assert kept_of(logits, top_k, WithoutTheLikeliest(1)).tolist() == [1, 2]
    assert kept_of(logits, top_k, WithoutTheLikeliest(1), top_p).tolist() == [1]


def test_one_that_needs_the_full_row_is_shown_it_at_once() -> None:
    shown = []

    class Watching(WithoutTheLikeliest):
        def keep(self, head: Head) -> Mask:
            shown.append(len(head.weights))
            return super().keep(head)

    logits = -np.arange(2 * HEAD_SIZE) / 1000
    assert kept_of(logits, Watching(1, full_row=True))[0] == 1
    assert shown == [2 * HEAD_SIZE]
    top_p = truncations_of(SamplingParams(temperature=1.0, top_p=0.9))
    assert joint_need([*top_p, Watching(1, full_row=True)], 1.0) == Need(full_row=True)
