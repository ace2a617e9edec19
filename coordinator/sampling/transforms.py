"""What each sampling parameter does, one function a parameter.

A parameter either changes the logits of some tokens (`CHANGES`) or keeps the head of the ranked
distribution (`TRUNCATIONS`). Both tuples stand in the order of application, and every function
returns its input when its parameter has the default value.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.core.sampling_params import SamplingParams

FloatArray = npt.NDArray[np.float64]


class Occurrences(NamedTuple):
    """What is known of the tokens whose logits may change; all arrays are `[num_tokens]`."""

    bias: FloatArray
    """Of `SamplingParams.logit_bias`."""
    seen: npt.NDArray[np.bool_]
    """Occurs in the prompt or the output."""
    output_counts: npt.NDArray[np.int64]
    """How often it occurs in the output."""


class Distribution(NamedTuple):
    """The head of a distribution, not normalized."""

    weights: FloatArray
    """Falling `[num_candidates]`; the first is 1."""
    total: float
    """Weight of all tokens, those beyond the head included."""


def logit_bias(logits: FloatArray, tokens: Occurrences, params: SamplingParams) -> FloatArray:
    """Adds the bias of each token."""
    return logits + tokens.bias if params.logit_bias else logits


def repetition_penalty(
    logits: FloatArray, tokens: Occurrences, params: SamplingParams
) -> FloatArray:
    """Divides positive and multiplies negative logits of tokens seen (CTRL, arXiv:1909.05858)."""
    penalty = params.repetition_penalty
    if penalty == 1.0:
        return logits
    return np.where(tokens.seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)


def frequency_penalty(
    logits: FloatArray, tokens: Occurrences, params: SamplingParams
) -> FloatArray:
    """Subtracts the penalty once for every occurrence in the output."""
    if params.frequency_penalty == 0.0:
        return logits
    return logits - params.frequency_penalty * tokens.output_counts


def presence_penalty(logits: FloatArray, tokens: Occurrences, params: SamplingParams) -> FloatArray:
    """Subtracts the penalty from tokens that occur in the output."""
    if params.presence_penalty == 0.0:
        return logits
    return logits - params.presence_penalty * (tokens.output_counts > 0)


def top_k(distribution: Distribution, params: SamplingParams) -> Distribution:
    """Keeps the `top_k` most likely tokens; of equal ones, those with the lowest ids."""
    if params.top_k == 0:
        return distribution
    weights = distribution.weights[: params.top_k]
    return Distribution(weights, float(weights.sum()))


def top_p(distribution: Distribution, params: SamplingParams) -> Distribution:
    """Keeps the fewest most likely tokens that hold `top_p` of the mass (arXiv:1904.09751)."""
    if params.top_p == 1.0:
        return distribution
    cumulative = np.cumsum(distribution.weights)
    num_kept = int(np.searchsorted(cumulative, params.top_p * distribution.total)) + 1
    weights = distribution.weights[:num_kept]
    return Distribution(weights, float(cumulative[len(weights) - 1]))


def min_p(distribution: Distribution, params: SamplingParams) -> Distribution:
    """Keeps tokens at least `min_p` times as likely as the likeliest one (arXiv:2407.01082)."""
    if params.min_p == 0.0:
        return distribution
    weights = distribution.weights[: np.count_nonzero(distribution.weights >= params.min_p)]
    return Distribution(weights, float(weights.sum()))


CHANGES = (logit_bias, repetition_penalty, frequency_penalty, presence_penalty)

TRUNCATIONS = (top_k, top_p, min_p)
