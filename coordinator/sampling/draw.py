"""Draws a token: temperature, truncations, and the highest sum of logit and noise."""

import numpy as np
import numpy.typing as npt

from coordinator.core.sampling_params import SamplingParams
from coordinator.sampling.noise import gumbels, uniforms
from coordinator.sampling.ranking import Ranked, Ranking
from coordinator.sampling.transforms import TRUNCATIONS, Distribution, FloatArray

HEAD_SIZE = 256
"""Ranks that nearly always hold the wanted share of the mass."""

_GROWTH = 16
"""How many times more ranks are looked at when they do not."""

_BLOCK = 4096
"""Tokens whose noise is computed at once."""


def truncates(params: SamplingParams) -> bool:
    """True when some tokens cannot be drawn, whatever their noise."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def draw(
    ranking: Ranking, params: SamplingParams, *, temperature: float, total: float, key: int
) -> int:
    """Returns one of the tokens that the truncations keep.

    Args:
        ranking: Logits after bias and penalties.
        params: Says what is truncated.
        temperature: Above 0.
        total: sum(exp((logits - highest) / temperature)) over the whole row, after bias and
            penalties. Used with top-p and min-p alone.
        key: Of the noise.
    """
    if truncates(params):
        ids, logits = _kept(ranking, params, temperature, total)
    else:
        ids, logits = ranking.known()
    return best(ids, logits, temperature=temperature, key=key)


def best(ids: npt.NDArray[np.int64], logits: FloatArray, *, temperature: float, key: int) -> int:
    """Returns the token with the highest `logit / temperature + noise`, in float64.

    Args:
        ids: `[num_tokens]`, in any order; the lowest wins among equals.
        logits: `[num_tokens]`.
        temperature: Above 0.
        key: Of the noise.
    """
    gaps = (logits - logits.max()) / temperature
    if len(ids) > _BLOCK:
        near = _near_best(ids, gaps, key)
        ids, gaps = ids[near], gaps[near]
    scores = gaps + gumbels(uniforms(key, ids))
    return int(ids[scores == scores.max()].min())


def _near_best(ids: npt.NDArray[np.int64], gaps: FloatArray, key: int) -> npt.NDArray[np.int64]:
    """Indices of a few tokens, the best among them: spares most logarithms, and memory."""
    found = []
    least = -np.inf
    for start in range(0, len(ids), _BLOCK):
        block = slice(start, start + _BLOCK)
        numbers = uniforms(key, ids[block])
        most = gaps[block] - np.log(numbers)  # -log1p(-u) > u, so no score is higher
        likely = int(most.argmax())
        score = gaps[start + likely] + gumbels(numbers[likely : likely + 1])[0]
        least = max(least, score)
        found.append(np.flatnonzero(most >= least) + start)
    return np.concatenate(found)


def _kept(ranking: Ranking, params: SamplingParams, temperature: float, total: float) -> Ranked:
    """Ranks until the cut lies among them, and returns those before it."""
    num_tokens = params.top_k or HEAD_SIZE
    while True:
        ids, logits = ranking.top(num_tokens)
        distribution = Distribution(weigh(logits, logits[0], temperature), total)
        for truncate in TRUNCATIONS:
            distribution = truncate(distribution, params)
        num_kept = len(distribution.weights)
        if num_kept < len(ids) or params.top_k or num_tokens >= ranking.size:
            return Ranked(ids[:num_kept], logits[:num_kept])
        num_tokens *= _GROWTH


def weigh(logits: FloatArray, highest: float, temperature: float) -> FloatArray:
    """Returns probabilities relative to that of the highest logit."""
    return np.exp((logits - highest) / temperature)
