"""Draws a token from ranked logits: temperature, truncations, inverse distribution function."""

import numpy as np
import numpy.typing as npt

from coordinator.core.sampling_params import SamplingParams
from coordinator.sampling.ranking import Ranking
from coordinator.sampling.transforms import TRUNCATIONS, Distribution, FloatArray

HEAD_SIZE = 256
"""Ranks that nearly always hold the wanted share of the mass."""

_GROWTH = 16
"""How many times more ranks are looked at when they do not."""


def draw(
    ranking: Ranking,
    params: SamplingParams,
    *,
    temperature: float,
    total: float,
    random_number: float,
) -> int:
    """Returns the token at which the cumulated share of the mass passes a random number.

    Args:
        ranking: Logits after bias and penalties.
        params: Says what is truncated.
        temperature: Above 0.
        total: sum(exp((logits - highest) / temperature)) over the whole row, after bias and
            penalties. Not used with top-k.
        random_number: In [0, 1).
    """
    if params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0:
        ids, distribution = _truncated(ranking, params, temperature, total)
    else:
        ids, distribution = _untruncated(ranking, temperature, total, random_number)
    cumulative = np.cumsum(distribution.weights)
    # Rounding may leave the total a little above the sum; the last token with any weight stands in.
    target = min(random_number * distribution.total, np.nextafter(cumulative[-1], 0.0))
    return int(ids[np.searchsorted(cumulative, target, side="right")])


def _truncated(
    ranking: Ranking, params: SamplingParams, temperature: float, total: float
) -> tuple[npt.NDArray[np.int64], Distribution]:
    """Ranks until the cut lies among them."""
    num_tokens = params.top_k or HEAD_SIZE
    while True:
        ids, logits = ranking.top(num_tokens)
        distribution = Distribution(weigh(logits, logits[0], temperature), total)
        for truncate in TRUNCATIONS:
            distribution = truncate(distribution, params)
        is_cut = len(distribution.weights) < len(ids)
        if is_cut or params.top_k or num_tokens >= ranking.size:
            return ids, distribution
        num_tokens *= _GROWTH


def _untruncated(
    ranking: Ranking, temperature: float, total: float, random_number: float
) -> tuple[npt.NDArray[np.int64], Distribution]:
    """The head by rank and, where it is reached, the rest by id: the vocabulary is not sorted."""
    ids, logits = ranking.top(HEAD_SIZE)
    weights = weigh(logits, logits[0], temperature)
    if ranking.full is not None and weights.sum() <= random_number * total:
        rest = weigh(ranking.full, logits[0], temperature)
        rest[ids] = 0.0
        ids = np.concatenate([ids, np.arange(len(rest))])
        weights = np.concatenate([weights, rest])
    return ids, Distribution(weights, total)


def weigh(logits: FloatArray, highest: float, temperature: float) -> FloatArray:
    """Returns probabilities relative to that of the highest logit."""
    return np.exp((logits - highest) / temperature)
