"""The short way to norm against torch's own."""

import pytest
import torch
from torch.nn import functional

from stage_server.model.rms_norm import RmsNorm

EPS = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_it_equals_the_norm_of_torch(num_rows: int, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    hidden = (torch.randn(num_rows, 96, generator=generator) * scale).to(dtype)
    weight = torch.randn(96, generator=generator).to(dtype)
    before = hidden.clone()

    normed = RmsNorm(weight, EPS)(hidden)

    torch.testing.assert_close(normed, functional.rms_norm(hidden, (96,), weight, EPS))
    assert torch.equal(hidden, before)


def test_rows_of_zeros_stay_zeros() -> None:
    assert torch.equal(RmsNorm(torch.ones(8), EPS)(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_a_row_of_a_larger_tensor_is_normed_by_itself() -> None:
    hidden = torch.arange(24.0).view(3, 8)
    norm = RmsNorm(torch.ones(8), EPS)
    torch.testing.assert_close(norm(hidden)[1:2], norm(hidden[1:2]))
