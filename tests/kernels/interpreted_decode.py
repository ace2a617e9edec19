"""Paged decode attention in Triton's interpreter, against one sequence at a time in plain torch."""

import math
from itertools import accumulate, chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.coded_heads import decoded
from tests.kernels.interpreter import compute_bfloat16, counted_traffic

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
NUM_BLOCKS = 60
SCALING = 0.3


class Case:
    """Random sequences in a pool that holds NaN wherever no sequence lies."""

    def __init__(
        self,
        lengths: list[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        is_int8: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(sum(lengths))
        self.lengths, self.block_size = lengths, block_size
        free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
        self.tables = [
            [free.pop() for _ in range(-(-length // block_size))] or [0] for length in lengths
        ]
        shape = (NUM_BLOCKS * block_size, num_kv_heads, head_dim)
        self.pool = torch.full((2, *shape), math.nan, dtype=dtype)
        self.scales = None
        if is_int8:
            self.pool = torch.full((2, *shape), 127, dtype=torch.int8)
            self.scales = torch.full((2, *shape[:2], 2), math.nan, dtype=torch.float16)
        for i, length in enumerate(lengths):
            slots, size = self.slots(i), (2, length, num_kv_heads, head_dim)
            if self.scales is None:
                self.pool[:, slots] = torch.randn(size, generator=generator).to(dtype)
            else:
                numbers = torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)
                self.pool[:, slots] = numbers
                scales = torch.rand((*size[:3], 2), generator=generator).half() / 64
                self.scales[:, slots] = scales
        # More rows than sequences, and in another order.
        self.rows = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
        query_shape = (len(lengths) + 2, num_heads, head_dim)
        self.query = torch.randn(query_shape, generator=generator).to(dtype)

    @property
    def sinks(self) -> torch.Tensor:
        return torch.linspace(-2, 3, self.query.shape[1]).to(self.query.dtype)

    def slots(self, sequence: int) -> torch.Tensor:
        positions = torch.arange(self.lengths[sequence])
        blocks = torch.tensor(self.tables[sequence])[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def decode(
        self,
        *,
        num_processors: int = 1,
        window: int | None = None,
        softcap: float | None = None,
        has_sinks: bool = False,
    ) -> torch.Tensor:
        starts = [0, *accumulate(map(len, self.tables[:-1]))]
        output = torch.full_like(self.query, 7)
        Kernels(num_processors=num_processors).decode(
            self.query,
            self.pool[0],
            self.pool[1],
            rows=self.rows,
            tables=torch.tensor(list(chain.from_iterable(self.tables))),
            starts=torch.tensor(starts),
            lengths=torch.tensor(self.lengths),
            max_length=max(self.lengths),
            block_size=self.block_size,
            scaling=SCALING,
            sliding_window=window,
            softcap=softcap,
            sinks=self.sinks if has_sinks else None,
            output=output,
            key_scales=None if self.scales is None else self.scales[0],
            value_scales=None if self.scales is None else self.scales[1],
        )
        return output

    def twin(
        self, *, window: int | None = None, softcap: float | None = None, has_sinks: bool = False
    ) -> torch.Tensor:
        output = torch.full_like(self.query, 7)
        for i, row in enumerate(self.rows.tolist()):
            if not self.lengths[i]:
                output[row] = 0
                continue
            slots = self.slots(i)[-window if window else 0 :]
            key, value = self.pool[:, slots].float()
            if self.scales is not None:
                key, value = decoded(self.pool[:, slots], self.scales[:, slots], torch.float32)
            groups = self.query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
            scores = torch.einsum("hd,thd->ht", self.query[row].float(), key) * SCALING
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if has_sinks:
                scores = torch.cat((self.sinks.float()[:, None], scores), dim=1)
                value = torch.cat((torch.zeros_like(value[:1]), value))
            attended = torch.einsum("ht,thd->hd", scores.softmax(-1), value)
            output[row] = attended.to(output.dtype)
        return output


def check(case: Case, **how: object) -> None:
    found = case.decode(**how)  # type: ignore[arg-type]
    how.pop("num_processors", None)
    expected = case.twin(**how)  # type: ignore[arg-type]
    tolerance = TOLERANCES[case.query.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_bfloat16(monkeypatch)


@settings(max_examples=8)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (4, 2), (6, 1), (34, 2)]),
    st.sampled_from([8, 16, 40]),
    st.sampled_from([1, 4, 16, 24]),
    st.sampled_from([None, 1, 20, 300]),
    st.sampled_from([None, 5.0]),
    st.booleans(),
)
def test_any_shape_equals_its_twin(
    lengths: list[int],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    lengths = [min(length, NUM_BLOCKS // 3 * block_size) for length in lengths]
    case = Case(
        lengths,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
    )
    check(case, window=window, softcap=softcap, has_sinks=has_sinks)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_parts_of_a_sequence_are_joined_and_empty_ones_are_nothing(
    dtype: torch.dtype, window: int | None
) -> None:
    # As many parts as the longest is worth: of the shortest, all but one are empty.
    case = Case([300, 1, 33], dtype=dtype)
    kernels = Kernels(num_processors=28)
    assert kernels.num_splits(3, 2, 300) == 3
    check(case, num_processors=28, window=window, has_sinks=True)


@pytest.mark.parametrize("num_processors", [1, 28])
def test_a_sequence_of_no_positions_gives_zeros(num_processors: int) -> None:
    check(Case([0, 200]), num_processors=num_processors)


def test_kv_that_is_kept_narrower_is_widened() -> None:
    case = Case([40, 3])
    case.pool = case.pool.to(torch.float16)
    check(case)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("num_processors", [1, 28])
def test_keys_and_values_of_eight_bits_are_decoded(num_processors: int, dtype: torch.dtype) -> None:
    check(Case([150, 3], is_int8=True, dtype=dtype), num_processors=num_processors)


@pytest.mark.parametrize("num_processors", [1, 28])
def test_small_values_of_eight_bits_are_not_lost_in_sixteen(num_processors: int) -> None:
    """A weight times their scale is below what float16 holds."""
    case = Case([150, 3], is_int8=True, dtype=torch.float16)
    assert case.scales is not None
    case.scales[1] *= 2**-14
    found = case.decode(num_processors=num_processors).float()
    expected = case.twin().float()
    largest = expected[case.rows].abs().max()
    assert largest < 0.01
    difference = (found - expected)[case.rows].abs().max()
    assert difference < 2 * TOLERANCES[torch.float16] * largest


@pytest.mark.parametrize(
    ("heads", "window", "num_processors"),
    [((2, 2), None, 1), ((8, 2), None, 1), ((8, 2), 40, 1), ((2, 2), None, 28)],
)
def test_a_step_moves_little_more_than_the_kv(
    heads: tuple[int, int], window: int | None, num_processors: int
) -> None:
    lengths = [33, 97, 210, 256]
    case = Case(
        lengths, num_heads=heads[0], num_kv_heads=heads[1], head_dim=128, dtype=torch.float16
    )
    with counted_traffic() as traffic:
        case.decode(window=window, num_processors=num_processors)
    num_positions = sum(min(length, window or length) for length in lengths)
    kv_bytes = num_positions * 2 * case.pool[0, 0].nbytes
    assert kv_bytes <= traffic.num_bytes <= 1.15 * kv_bytes
