"""The best way to cut a row of layers into stages, exactly.

Best is, in this order: the fastest slowest stage, because it sets the pace of a full pipeline; the
shortest way through all stages, because that is what one sequence waits for; the most KV tokens on
the stage that has the fewest, because that is what the cluster can hold.
"""

from collections.abc import Sequence
from typing import NamedTuple


class StageFit(NamedTuple):
    """What a stage with some number of layers would be."""

    time_ns: int
    """Time of one step at the stage."""
    kv_tokens: int
    """Room for KV."""


class SplitScore(NamedTuple):
    """How good a split is; the lowest is the best."""

    slowest_ns: int
    total_ns: int
    negative_kv_tokens: int


Options = Sequence[Sequence[StageFit | None]]
"""`options[stage][num_layers]`; None where that many layers do not fit, and for 0 layers."""


def best_split(options: Options) -> tuple[int, ...] | None:
    """Divides all layers over all stages, at least one each.

    Dynamic programming over (stages, layers), twice: for the time of the slowest stage, and then,
    among the stages that are no slower, for the rest of the score. Both passes are exact: whatever
    stands behind a prefix, a better prefix of the same stages and layers makes no score worse.

    Args:
        options: One row a stage, each with one entry more than there are layers.

    Returns:
        Layers of each stage, or None when no division fits.
    """
    slowest_ns = _least_slowest(options)
    return None if slowest_ns is None else _least_total(options, slowest_ns)


def score(options: Options, split: Sequence[int]) -> SplitScore | None:
    """Scores a split; None when a stage does not fit."""
    fits = [stage[count] for stage, count in zip(options, split, strict=True)]
    fitting = [fit for fit in fits if fit is not None]
    if len(fitting) < len(fits):
        return None
    return SplitScore(
        max(fit.time_ns for fit in fitting),
        sum(fit.time_ns for fit in fitting),
        -min(fit.kv_tokens for fit in fitting),
    )


def _least_slowest(options: Options) -> int | None:
    """Time of the slowest stage of the split where it is fastest."""
    num_layers = len(options[0]) - 1
    best: dict[int, int] = {0: 0}  # by layers divided so far
    for stage in options:
        longer: dict[int, int] = {}
        for done, slowest_ns in best.items():
            for count in range(1, num_layers - done + 1):
                fit = stage[count]
                if fit is not None:
                    found_ns = max(slowest_ns, fit.time_ns)
                    longer[done + count] = min(found_ns, longer.get(done + count, found_ns))
        best = longer
    return best.get(num_layers)


def _least_total(options: Options, slowest_ns: int) -> tuple[int, ...]:
    """The best split none of whose stages is slower than this; there is one."""
    num_layers = len(options[0]) - 1
    unlimited = max(fit.kv_tokens for stage in options for fit in stage if fit is not None)
    # Total time, fewest KV tokens, negated, and the split, by layers divided so far.
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, -unlimited, ())}
    for stage in options:
        longer: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for done, (total_ns, negative_kv, split) in best.items():
            for count in range(1, num_layers - done + 1):
                fit = stage[count]
                if fit is not None and fit.time_ns <= slowest_ns:
                    found = (
                        total_ns + fit.time_ns,
                        max(negative_kv, -fit.kv_tokens),
                        (*split, count),
                    )
                    longer[done + count] = min(found, longer.get(done + count, found))
        best = longer
    return best[num_layers][2]
