"""The kernels between a layer's matrices in Triton's interpreter, against their twins."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.kernels import kernels, twins
from stage_server.kv_cache.coded_heads import coded, decoded

TOLERANCES = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 8e-2}
EPS = 1e-5

dtypes = st.sampled_from(sorted(TOLERANCES, key=str))


def assert_like(found: Any, expected: Any, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=10)
@given(
    st.integers(1, 5),
    st.sampled_from([(1, 1), (4, 2), (5, 1), (16, 16)]),
    st.sampled_from([8, 24, 128]),
    st.booleans(),
    st.booleans(),
    dtypes,
)
def test_heads_are_rotated_and_stored(
    num_tokens: int,
    num_heads: tuple[int, int],
    head_dim: int,
    has_norm: bool,
    is_coded: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(num_tokens)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    num_queries, num_kv_heads = num_heads
    heads = random(num_tokens, num_queries + 2 * num_kv_heads, head_dim)
    cos, _, swapped_sin = random(num_tokens, 3, head_dim).unbind(1)  # as `Rotary.at` gives them
    head_norm = random(num_queries + num_kv_heads, head_dim) if has_norm else None
    kept = torch.int8 if is_coded else dtype
    pool = torch.full((2, 12, num_kv_heads, head_dim), 7, dtype=kept)
    scales = None
    if is_coded:
        scales = torch.full((2, 12, num_kv_heads, 2), 7, dtype=torch.float16)
    slots = torch.randperm(12, generator=generator)[:num_tokens]
    expected = twins.rotate(
        heads, cos, swapped_sin, head_norm=head_norm, eps=EPS, num_kv_heads=num_kv_heads
    )
    query = kernels.rotate_and_store(
        heads,
        cos,
        swapped_sin,
        head_norm=head_norm,
        eps=EPS,
        slots=slots,
        keys=pool[0],
        values=pool[1],
        key_scales=None if scales is None else scales[0],
        value_scales=None if scales is None else scales[1],
    )
    assert_like(query, expected.queries, dtype)
    others = torch.ones(12, dtype=torch.bool)
    others[slots] = False
    assert bool((pool[:, others] == 7).all())
    if scales is None:
        assert_like(pool[0, slots], expected.keys, dtype)
        assert torch.equal(pool[1, slots], expected.values), "values are copied"
        return
    assert bool((scales[:, others] == 7).all())
    assert torch.equal(pool[1, slots], coded(expected.values).codes)
    assert torch.equal(scales[1, slots], coded(expected.values).scales)
    found = decoded(pool[:, slots], scales[:, slots], torch.float32)
    assert_codes(found[0], expected.keys, TOLERANCES[dtype])
    assert_codes(found[1], expected.values, 0)


@settings(max_examples=8)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([8, 24, 256]), dtypes)
def test_heads_are_coded_and_stored(
    num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """They lie apart, as in one tensor with others."""
    generator = torch.Generator().manual_seed(num_tokens)
    shape = num_tokens, 3 * num_heads, head_dim
    heads = torch.randn(shape, generator=generator).to(dtype)[:, num_heads:-num_heads]
    codes = torch.full((12, num_heads, head_dim), 7, dtype=torch.int8)
    scales = torch.full((12, num_heads, 2), 7, dtype=torch.float16)
    expected = codes.clone(), scales.clone()
    slots = torch.randperm(12, generator=generator)[:num_tokens]
    for pool, rounded in zip(expected, coded(heads), strict=True):
        pool[slots] = rounded
    kernels.store_coded(heads, slots, codes, scales)
    assert torch.equal(codes, expected[0])
    assert torch.equal(scales, expected[1])


def assert_codes(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Half a code of 255 away at most, of numbers that differ by the tolerance."""
    low, high = expected.float().aminmax(dim=-1, keepdim=True)
    largest = torch.maximum(high, -low)
    most = (high - low) / 506 + (tolerance + 1e-3) * (1e-3 + largest)
    assert bool(((found - expected.float()).abs() <= most).all())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_is_not_lost_in_codes() -> None:
    heads = torch.ones(1, 3, 8)
    heads[0, 1, 3], heads[0, 2, 5] = math.nan, math.inf
    pool = torch.zeros(2, 1, 1, 8, dtype=torch.int8)
    scales = torch.zeros(2, 1, 1, 2, dtype=torch.float16)
    kernels.rotate_and_store(
        heads,
        torch.ones(1, 8),
        torch.zeros(1, 8),
        head_norm=None,
        eps=EPS,
        slots=torch.zeros(1, dtype=torch.int64),
        keys=pool[0],
        values=pool[1],
        key_scales=scales[0],
        value_scales=scales[1],
    )
    assert not scales[..., 1].isfinite().any(), "offsets"


@settings(max_examples=10)
@given(st.integers(1, 3), st.sampled_from([1, 1000, 1024, 2500]), dtypes)
def test_a_gate_opens_as_its_twin(num_tokens: int, size: int, dtype: torch.dtype) -> None:
    gate_up = torch.randn(num_tokens, 2 * size, dtype=torch.float32).to(dtype)
    assert_like(kernels.silu_and_mul(gate_up), twins.silu_and_mul(gate_up), dtype)


@settings(max_examples=10)
@given(
    st.integers(1, 3),
    st.sampled_from([48, 1024, 3000]),
    st.sampled_from([1.0, 0.22]),
    dtypes,
)
def test_a_residual_is_added_and_normed(
    num_tokens: int, size: int, scale: float, dtype: torch.dtype
) -> None:
    hidden, update = torch.randn(2, num_tokens, size).to(dtype)
    weight = torch.randn(size).to(dtype)
    found = kernels.add_rms_norm(hidden, update, weight, scale=scale, eps=EPS)
    expected = twins.add_rms_norm(hidden, update, weight, scale=scale, eps=EPS)
    assert_like(found, expected, dtype)


def test_a_residual_that_cancels_is_normed_to_zero() -> None:
    hidden = torch.randn(1, 48)
    added, normed = kernels.add_rms_norm(hidden, -hidden, torch.ones(48), scale=1.0, eps=EPS)
    assert not added.any()
    assert not normed.any()
