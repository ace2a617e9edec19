"""Keys and values in 8 bits: which heads are kept, and which are read as NaN."""

import math

import pytest
import torch

from stage_server.kv_cache.coded_heads import coded, decoded

MOST = 65504.0
"""The largest number of float16."""


def kept(*numbers: float) -> torch.Tensor:
    """What is read of a head, `[1, head_dim]`."""
    codes = coded(torch.tensor([numbers]))
    return decoded(codes.codes, codes.scales, torch.float32)


@pytest.mark.parametrize(
    "numbers",
    [
        (1.0, math.nan, 0.0),
        (1.0, math.inf, 0.0),
        (math.inf, -math.inf, 0.0),
        (1.1 * MOST, 1.1 * MOST),
        (130 * MOST, -130 * MOST, 0.0),
    ],
    ids=["nan", "infinite", "both-infinite", "centre", "range"],
)
def test_a_head_that_codes_cannot_keep_is_read_as_nan(numbers: tuple[float, ...]) -> None:
    assert kept(*numbers).isnan().all()


@pytest.mark.parametrize(
    "numbers",
    [(0.0, 0.0), (1.0, -2.0, 3.0), (1e5, -1e5, 1.0), (1e5, 1.0), (120 * MOST, -120 * MOST)],
)
def test_any_other_head_is_kept_within_half_a_step(numbers: tuple[float, ...]) -> None:
    half_step = (max(numbers) - min(numbers)) / (2 * 254)
    torch.testing.assert_close(
        kept(*numbers), torch.tensor([numbers]), rtol=1e-3, atol=1.01 * half_step
    )
