"""Draws a token: temperature, truncations, and the highest sum of logit and noise."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coordinator.sampling.noise import gumbels, uniforms
from coordinator.sampling.parameters import FloatArray, Head, Need, Truncation
from coordinator.sampling.ranking import Ranked, Ranking

HEAD_SIZE = 256
"""Ranks that nearly always hold the wanted share of the mass."""

_GROWTH = 16
"""How many times more ranks are looked at when they do not."""

_BLOCK = 4096
"""Tokens whose noise is computed at once."""


def draw(
    ranking: Ranking,
    truncations: Sequence[Truncation],
    need: Need,
    *,
    temperature: float,
    total: float,
    key: int,
) -> int:
    """Returns one of the tokens that the truncations keep.

    Args:
        ranking: Logits after bias and penalties.
        truncations: In the order of application.
        need: What they need together.
        temperature: Above 0.
        total: sum(exp((logits - highest) / temperature)) over the whole row, after bias and
            penalties. Used by truncations alone.
        key: Key of the noise.
    """
    if truncations:
        ids, logits = kept_ranks(ranking, truncations, need, temperature, total)
    else:
        ids, logits = ranking.known()
    return best(ids, logits, temperature=temperature, key=key)


def best(ids: npt.NDArray[np.int64], logits: FloatArray, *, temperature: float, key: int) -> int:
    """Returns the token with the highest `logit / temperature + noise`, in float64.

    Args:
        ids: `[num_tokens]`, in any order; the lowest wins among equals.
        logits: `[num_tokens]`.
        temperature: Above 0.
        key: Key of the noise.
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


def kept_ranks(
    ranking: Ranking,
    truncations: Sequence[Truncation],
    need: Need,
    temperature: float,
    total: float,
) -> Ranked:
    """Ranks until the lowest rank is dropped, and returns those that every truncation keeps.

    Args:
        ranking: Logits after bias and penalties.
        truncations: As `draw` takes them; at least one.
        need: As `draw` takes it.
        temperature: Above 0.
        total: As `draw` takes it.
    """
    first, *others = truncations
    num_tokens = need.num_candidates or (ranking.size if need.full_row else HEAD_SIZE)
    while True:
        ids, logits = ranking.top(num_tokens)
        weights = weigh(logits, logits[0], temperature)
        kept = first.keep(Head(weights, total))
        for truncation in others:
            kept[kept] = truncation.keep(Head(weights[kept], None))
        if need.num_candidates is not None or not kept[-1] or num_tokens >= ranking.size:
            return Ranked(ids[kept], logits[kept])
        num_tokens *= _GROWTH


def weigh(logits: FloatArray, highest: float, temperature: float) -> FloatArray:
    """Returns probabilities relative to that of the highest logit."""
    return np.exp((logits - highest) / temperature)
