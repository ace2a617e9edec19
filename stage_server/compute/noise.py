"""Draws by noise: which few tokens of a row a sampler may choose.

The last stage adds the noise because it has the whole row; it answers with a few tokens in place
of the row. `stagecoach.v1.LogitsRequest` specifies the noise to the bit, in unsigned arithmetic.
torch's integers of 64 bits are signed: they wrap alike, and shifts are masked.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

_CPU_CHUNK = 2**20
"""Numbers that are computed at once, some rows: fewer stay in the caches, but the threads of each
operation wait for each other, on a busy machine ten times as long as they compute."""
_CUDA_CHUNK = 2**22
"""So that they take little memory."""

_NUM_IN_COLUMN = 64
"""Numbers of which the smallest is found first."""

_HIGHEST = 1 - 2.0**-24
"""Highest float32 below 1, of which the logarithm is finite."""


class Contenders(NamedTuple):
    """The likeliest winners of one draw, the likeliest first."""

    ids: list[int]
    """`[num_contenders]`."""
    logits: list[float]


def find_contenders(
    logits: torch.Tensor,
    weights: torch.Tensor,
    rows: Sequence[int],
    noise_keys: Sequence[int],
    num_contenders: int,
) -> list[Contenders]:
    """Finds the tokens with the highest `logit / temperature + noise` in some rows.

    By the smallest E / w, with w = exp((logit - highest) / temperature) and E = -log(1 - u), which
    is the same order and costs one logarithm less. In float32: errors are far below the distances
    at which the sampler, who computes in float64, would choose another.

    Args:
        logits: float32 `[num_rows, vocab_size]`.
        weights: float32, of the same shape, w.
        rows: Rows whose contenders are wanted.
        noise_keys: One for each of `rows`.
        num_contenders: At least 1, at most vocab_size.
    """
    device = logits.device
    ids, values = contenders_of(
        logits,
        weights,
        torch.tensor(rows, device=device),
        torch.tensor([signed(key) for key in noise_keys], device=device),
        num_contenders,
    )
    return list(map(Contenders, ids.tolist(), values.tolist()))


def contenders_of(
    logits: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    noise_keys: torch.Tensor,
    num_contenders: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the same, without waiting for the device.

    Args:
        logits: As in `find_contenders`.
        weights: As in `find_contenders`.
        rows: int64 `[num_wanted]`, at least one.
        noise_keys: int64 `[num_wanted]`, see `signed`.
        num_contenders: As in `find_contenders`.

    Returns:
        Ids, int64, and logits, float32, `[num_wanted, num_contenders]` each.
    """
    vocab_size = logits.shape[1]
    steps = _steps(vocab_size, logits.device)
    chunk = _CPU_CHUNK if logits.device.type == "cpu" else _CUDA_CHUNK
    num_rows_at_once = max(1, chunk // vocab_size)
    found = []
    for start in range(0, len(rows), num_rows_at_once):
        some = slice(start, start + num_rows_at_once)
        numbers = _uniforms(steps + noise_keys[some, None])
        races = torch.log1p(numbers.neg_()).neg_().div_(weights[rows[some]])
        found.append(_smallest(races, num_contenders))
    ids = torch.cat(found)
    return ids, logits[rows[:, None], ids]


def _smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the `k` smallest of every row; on a CPU in a tenth of the time of topk."""
    num_columns = values.shape[1] // _NUM_IN_COLUMN
    if num_columns < k:
        return values.topk(k, dim=1, largest=False).indices
    # The k smallest of all lie in the k columns with the smallest minima, or in what is left over.
    num_in_columns = num_columns * _NUM_IN_COLUMN
    minima = values[:, :num_in_columns].view(-1, _NUM_IN_COLUMN, num_columns).amin(dim=1)
    columns = minima.topk(k, dim=1, largest=False).indices
    offsets = torch.arange(0, num_in_columns, num_columns, device=values.device)
    inside = (columns[:, :, None] + offsets).flatten(1)
    rest = torch.arange(num_in_columns, values.shape[1], device=values.device)
    ids = torch.cat([inside, rest.expand(len(values), -1)], dim=1)
    return ids.gather(1, values.gather(1, ids).topk(k, dim=1, largest=False).indices)


def hashed(x: torch.Tensor) -> torch.Tensor:
    """Finishes outputs of SplitMix64 and keeps their 52 highest bits; overwrites `x`, int64."""
    shifted = torch.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        torch.bitwise_right_shift(x, shift, out=shifted)
        shifted.bitwise_and_(2 ** (64 - shift) - 1)
        x.bitwise_xor_(shifted)
        if factor != 1:
            x.mul_(signed(factor))
    return x.bitwise_right_shift_(12).bitwise_and_(2**52 - 1)


def _uniforms(x: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1), float32; the small ones, which win, as exact as the others."""
    return hashed(x).to(torch.float32).add_(0.5).mul_(2.0**-52).clamp_(max=_HIGHEST)


@lru_cache(maxsize=8)
def _steps(vocab_size: int, device: torch.device) -> torch.Tensor:
    """(id + 1) * gamma of every id, int64 `[vocab_size]`."""
    return torch.arange(1, vocab_size + 1, device=device).mul_(signed(0x9E3779B97F4A7C15))


def signed(value: int) -> int:
    """Returns the int64 with the bits of an unsigned number."""
    return value - 2**64 if value >= 2**63 else value
