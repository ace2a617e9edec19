"""Attention of chunks over paged KV in Triton's interpreter, against one token after the other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.kernels.jit.paged_prefill import prefill_constants
from stage_server.kernels.kernels import Kernels
from tests.kernels.interpreter import compute_bfloat16, counted_traffic
from tests.obvious_kernels import ObviousKernels

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
UNTOUCHED = 7.0
KERNELS = Kernels(num_processors=1)


def tiles(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows and positions of a tile."""
    constants = prefill_constants(
        num_heads=1,
        num_kv_heads=1,
        head_dim=head_dim,
        block_size=16,
        on_tensor_cores=dtype.itemsize == 2,
        has_window=False,
        has_softcap=False,
        has_sinks=False,
        has_scales=False,
    )
    return constants["ROWS"], constants["TILE"]


class Case:
    """A random chunk in a micro-batch, and a pool that holds NaN wherever its sequence is not."""

    def __init__(
        self,
        start: int,
        num_tokens: int,
        *,
        heads: tuple[int, int] = (4, 2),
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(start + num_tokens)
        self.start, self.num_tokens, self.block_size = start, num_tokens, block_size
        num_heads, num_kv_heads = heads
        end = start + num_tokens
        num_blocks = -(-end // block_size)
        self.table = torch.randperm(num_blocks + 2, generator=generator)[:num_blocks]
        shape = (2, (num_blocks + 2) * block_size, num_kv_heads, head_dim)
        is_coded = kv_dtype is torch.int8
        self.pool = torch.full(shape, 127 if is_coded else math.nan, dtype=kv_dtype or dtype)
        self.scales = None
        if is_coded:
            self.scales = torch.full((*shape[:-1], 2), math.nan, dtype=torch.float16)
        positions = torch.arange(end)
        slots = self.table[positions // block_size] * block_size + positions % block_size
        kv = torch.randn((2, end, num_kv_heads, head_dim), generator=generator)
        if self.scales is None:
            self.pool[:, slots] = kv.to(self.pool.dtype)
        else:
            self.pool[:, slots] = (kv * 30).clamp(-127, 127).to(torch.int8)
            scales = torch.rand((*kv.shape[:-1], 2), generator=generator) / 30
            self.scales[:, slots] = scales.half()
        # Rows of others around it, which nobody may read or write.
        self.query = torch.full((num_tokens + 3, num_heads, head_dim), math.nan, dtype=dtype)
        own = torch.randn((num_tokens, num_heads, head_dim), generator=generator)
        self.query[1:-2] = own.to(dtype)

    def attend(
        self,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._attend(KERNELS, self.query, self.pool, self.scales, window, softcap, sinks)

    def twin(
        self,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._attend(
            ObviousKernels(num_processors=1),
            self.query.float(),
            self.pool.float(),
            self.scales,
            window,
            softcap,
            sinks,
        )

    def _attend(
        self,
        kernels: Kernels,
        query: torch.Tensor,
        pool: torch.Tensor,
        scales: torch.Tensor | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        output = torch.full_like(query, UNTOUCHED)
        kernels.prefill(
            query,
            pool[0],
            pool[1],
            table=self.table,
            first_row=1,
            num_tokens=self.num_tokens,
            start_position=self.start,
            block_size=self.block_size,
            scaling=0.3,
            sliding_window=window,
            softcap=softcap,
            sinks=sinks,
            output=output,
            key_scales=None if scales is None else scales[0],
            value_scales=None if scales is None else scales[1],
        )
        return output


def check(
    case: Case,
    *,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
) -> None:
    sinks = torch.linspace(-2, 3, case.query.shape[1]).to(case.query.dtype) if has_sinks else None
    found, expected = case.attend(window, softcap, sinks), case.twin(window, softcap, sinks)
    tolerance = TOLERANCES[case.query.dtype]
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_bfloat16(monkeypatch)


@settings(max_examples=12)
@given(
    st.sampled_from([0, 1, 33, 64]),
    st.integers(2, 40),
    st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1)]),
    st.sampled_from([8, 16, 40]),
    st.sampled_from([1, 4, 16, 24]),
    st.sampled_from([None, 1, 20, 300]),
    st.sampled_from([None, 5.0]),
    st.booleans(),
)
def test_any_shape_equals_its_twin(
    start: int,
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    case = Case(start, num_tokens, heads=heads, head_dim=head_dim, block_size=block_size)
    check(case, window=window, softcap=softcap, has_sinks=has_sinks)


@pytest.mark.parametrize("num_whole_tiles", [0, 2])
@pytest.mark.parametrize("start", [0, 90])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_heads_of_real_models_equal_their_twins(
    head_dim: int, start: int, num_whole_tiles: int
) -> None:
    num_rows, _ = tiles(head_dim, torch.float16)
    num_tokens = num_whole_tiles * num_rows // 2 + 5
    case = Case(start, num_tokens, heads=(2, 1), head_dim=head_dim, dtype=torch.float16)
    check(case, window=40, softcap=5.0)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_dtype_equals_its_twin(dtype: torch.dtype) -> None:
    check(Case(30, 70, heads=(8, 4), head_dim=32, dtype=dtype), softcap=5.0)


def test_rows_that_see_nothing_of_a_tile_are_not_troubled_by_it() -> None:
    """The first tile of positions is in the window of the first rows alone."""
    check(Case(0, 64, heads=(1, 1), dtype=torch.float16), window=1)


def test_kv_that_is_kept_narrower_is_widened() -> None:
    check(Case(40, 9, kv_dtype=torch.float16), softcap=5.0)
    check(Case(40, 9, kv_dtype=torch.float16, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_keys_and_values_of_eight_bits_are_decoded(dtype: torch.dtype) -> None:
    check(Case(40, 9, kv_dtype=torch.int8, dtype=dtype), softcap=5.0, window=30)
    check(Case(70, 40, kv_dtype=torch.int8, dtype=dtype), has_sinks=True)


@pytest.mark.parametrize(
    ("start", "num_tiles", "window"), [(0, 3, None), (256, 2, None), (256, 2, 10), (0, 2, 10)]
)
def test_tiles_that_no_row_sees_are_not_read(
    start: int, num_tiles: int, window: int | None
) -> None:
    dtype, num_kv_heads, head_dim = torch.float16, 2, 64
    num_rows, tile = tiles(head_dim, dtype)
    case = Case(
        start, num_tiles * num_rows // 2, heads=(4, num_kv_heads), head_dim=head_dim, dtype=dtype
    )
    with counted_traffic() as traffic:
        case.attend(window)
    num_positions = 0
    for first in range(start, start + case.num_tokens, num_rows // 2):
        last = first + num_rows // 2 - 1
        first_seen = 0 if window is None else max(0, first + 1 - window)
        num_positions += last + 1 - first_seen // tile * tile
    a_position = case.table.itemsize + 2 * head_dim * dtype.itemsize
    rows_bytes = 2 * case.num_tokens * 4 * head_dim * dtype.itemsize
    assert traffic.num_bytes == num_positions * num_kv_heads * a_position + rows_bytes
