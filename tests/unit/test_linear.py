"""Matrices: a row that is computed alone is what it is among others."""

import pytest
import torch

from stage_server.model.linear import DenseLinear


@pytest.mark.parametrize("in_features", [64, 1536, 4096])
@pytest.mark.parametrize("leading", [(), (1,)])
def test_in_bfloat16_a_lone_row_is_what_it_is_beside_another(
    in_features: int, leading: tuple[int, ...]
) -> None:
    """A kernel for one row rounded some elements differently, and seeds gave other texts."""
    generator = torch.Generator().manual_seed(0)
    scale = in_features**-0.5
    weight = (scale * torch.randn(96, in_features, generator=generator)).bfloat16()
    bias = torch.randn(96, generator=generator).bfloat16()
    linear = DenseLinear(weight, bias)
    rows = torch.randn(128, in_features, generator=generator).bfloat16()
    for first, second in rows.view(-1, 2, in_features):
        alone = linear(first.view(*leading, 1, in_features))
        assert alone.shape == (*leading, 1, 96)
        assert torch.equal(alone.view(96), linear(torch.stack([first, second]))[0])
