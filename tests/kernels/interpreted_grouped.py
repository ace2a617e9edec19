"""Products with matrices in 4 and 8 bits in Triton's interpreter, against plain products."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_server.kernels import grouped
from stage_server.kernels.kernels import Kernels
from stage_server.model import linear_formats
from stage_server.model.coded_rows import quantized
from stage_server.model.cuda_grouped_rows import CudaRows, KernelRows
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, DType, Precision
from stagecoach.model_files import open_model
from tests.few_bits import QType, mix
from tests.kernels.interpreter import compute_bfloat16, counted_traffic
from tests.parity.test_layer_stack import PROMPT, SplitModel
from tests.tiny_models import tiny_gguf

CPU = torch.device("cpu")

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_bfloat16(monkeypatch)


def random_matrix(
    num_rows: int, num_columns: int, num_bits: int, *, has_offsets: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Packed codes, scales and offsets."""
    generator = torch.Generator().manual_seed(num_rows * num_columns)
    num_groups = -(-num_columns // 32)
    codes = torch.randint(0, 1 << num_bits, (num_rows, num_columns), generator=generator)
    step = 2.0 ** (1 - num_bits)
    scales = (torch.rand(num_rows, num_groups, generator=generator) * step).half()
    offsets = torch.randn(num_rows, num_groups, generator=generator).half() * 0.3
    packed = grouped.packed_groups(codes.to(torch.uint8), num_bits=num_bits)
    assert packed.shape == (num_rows, num_groups * 4 * num_bits)
    return packed, scales, offsets if has_offsets else None


def unpacked_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    *,
    num_columns: int,
    num_bits: int,
) -> torch.Tensor:
    """The slow twin of `unpacked`: float32 `[num_rows, num_columns]` of the same arguments."""
    groups = codes.view(*scales.shape, -1)
    if num_bits == 4:
        groups = torch.cat((groups & 15, groups >> 4), dim=-1)
    numbers = (groups.float() - (1 << (num_bits - 1))) * scales.float().unsqueeze(-1)
    if offsets is not None:
        numbers += offsets.float().unsqueeze(-1)
    return numbers.view(len(codes), -1)[:, :num_columns]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    # Terms of about 1 may cancel each other, and their rounding stays.
    size = expected.norm().clamp(min=0.05 * expected.numel() ** 0.5)
    assert float((found.float() - expected).norm() / size) < tolerance


shapes = st.sampled_from([(1, 32), (8, 64), (16, 33), (37, 100), (70, 300)])


@settings(max_examples=10, deadline=None)
@given(
    shapes,
    st.sampled_from([1, 2, 3, 8, 16, 33, 64]),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_a_product_is_the_plain_product(
    shape: tuple[int, int], num_tokens: int, num_bits: int, has_offsets: bool, dtype: torch.dtype
) -> None:
    matrix = random_matrix(*shape, num_bits, has_offsets=has_offsets)
    hidden = torch.randn(num_tokens, shape[1]).to(dtype)
    plain = unpacked_groups(*matrix, num_columns=shape[1], num_bits=num_bits)
    found = grouped.product(hidden, *matrix, num_bits=num_bits)
    assert found.dtype == dtype
    assert_close(found, hidden.float() @ plain.T, TOLERANCES[dtype])


@settings(max_examples=8, deadline=None)
@given(shapes, st.sampled_from([4, 8]), st.booleans())
def test_one_token_is_multiplied_in_float32(
    shape: tuple[int, int], num_bits: int, has_offsets: bool
) -> None:
    matrix = random_matrix(*shape, num_bits, has_offsets=has_offsets)
    hidden = torch.randn(1, shape[1])
    plain = unpacked_groups(*matrix, num_columns=shape[1], num_bits=num_bits)
    assert_close(grouped.product(hidden, *matrix, num_bits=num_bits), hidden @ plain.T, 1e-5)


@settings(max_examples=8, deadline=None)
@given(shapes, st.sampled_from([4, 8]), st.booleans(), st.sampled_from(sorted(TOLERANCES, key=str)))
def test_rows_are_unpacked_as_their_twin(
    shape: tuple[int, int], num_bits: int, has_offsets: bool, dtype: torch.dtype
) -> None:
    matrix = random_matrix(*shape, num_bits, has_offsets=has_offsets)
    found = grouped.unpacked(*matrix, num_columns=shape[1], num_bits=num_bits, dtype=dtype)
    expected = unpacked_groups(*matrix, num_columns=shape[1], num_bits=num_bits)
    # The interpreter cuts off what bfloat16 does not have, where a card rounds.
    rtol = 8e-3 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found, expected.to(dtype), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_each_byte_of_a_matrix_is_read_once(num_bits: int, num_tokens: int) -> None:
    matrix = random_matrix(64, 256, num_bits, has_offsets=False)
    hidden = torch.randn(num_tokens, 256).half()
    with counted_traffic() as traffic:
        grouped.product(hidden, *matrix, num_bits=num_bits)
    num_bytes = matrix[0].nbytes + matrix[1].nbytes
    blocks = 64 // (8 if num_tokens == 1 else 32)
    assert traffic.num_bytes == num_bytes + blocks * hidden.nbytes + 2 * num_tokens * 64


@pytest.mark.parametrize(
    ("num_tokens", "max_few_tokens", "num_bits"),
    [(1, 1, 4), (1, 64, 8), (2, 1, 8), (2, 64, 4), (64, 64, 8), (65, 64, 4), (65, 1, 8)],
)
def test_rows_of_a_stage_are_multiplied_in_any_number(
    num_bits: int, num_tokens: int, max_few_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number on either side of what counts as few, in either number of bits."""
    monkeypatch.setattr("stagecoach.roofline.few_bits.UNPACKED_BYTES", 2000)
    weight = torch.randn(70, 90, generator=torch.Generator().manual_seed(0))
    part = quantized(weight, num_bits)
    parts = [part.rows(slice(64)), part.rows(slice(64, 70))]
    rows = KernelRows(parts, 70, 90, num_bits, CPU, max_few_tokens=max_few_tokens)
    hidden = torch.randn(num_tokens, 90).half()
    expected = hidden.float() @ part.values(1 << (num_bits - 1)).T
    assert_close(rows(hidden), expected, 2e-3)


@pytest.mark.slow
def test_a_stage_of_few_bits_computes_what_its_numbers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 4, 6 and 8 bits and of float16, with the forms of CUDA on the CPU."""
    monkeypatch.setattr(Kernels, "of", lambda _: Kernels(num_processors=28))
    monkeypatch.setattr(linear_formats, "row_forms", CudaRows)
    quantization = mix(QType.Q4_K, QType.Q6_K, ends=QType.Q8_0)
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    files = open_model(str(tiny_gguf("llama", tmp_path, quantization=quantization, **shape)))
    precision = Precision.uniform(DType.FLOAT16)
    plain, few = (
        load_layer_stack(files, LayerRange(0, 1), precision=each, device=CPU)
        for each in (Precision.uniform(DType.FLOAT32), precision._replace(weights=INT4))
    )
    assert few.weight_bytes < 0.4 * plain.weight_bytes
    expected = SplitModel([plain]).logits(PROMPT)
    assert_close(SplitModel([few]).logits(PROMPT), expected, 0.05)
    one_by_one = SplitModel([few])
    found = torch.cat([one_by_one.logits([token]) for token in PROMPT[:2]])
    assert_close(found, expected[:2], 0.05)


def test_the_check_at_start_finds_products_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "of", lambda _: Kernels(num_processors=28))
    assert CudaRows(DType.FLOAT16, CPU).failure is None
    assert CudaRows(DType.FLOAT32, CPU).failure is None
    multiply = grouped.product
    monkeypatch.setattr(grouped, "product", lambda *args, **bits: 1.1 * multiply(*args, **bits))
    failure = CudaRows(DType.FLOAT16, CPU).failure
    assert failure is not None
    assert failure.startswith("a product of 1 tokens in 4 bits differs by 0.")
