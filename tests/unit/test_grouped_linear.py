"""Matrices in few bits: products against the plain product of the numbers that they stand for."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from stage_server.model import int4_operator
from stage_server.model.coded_rows import CodedRows, kept, quantized
from stage_server.model.cpu_grouped_rows import MAX_FEW_TOKENS, Packed4, Packed8, PackedRows
from stage_server.model.embeddings import CodedEmbedding
from stage_server.model.grouped_linear import GroupedLinear
from stage_server.model.linear_formats import linear_format
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import INT4, DType, Precision
from stagecoach.model_files.grouped_rows import GroupedRows

torch.set_num_threads(1)

CPU = torch.device("cpu")
MIDDLE = {4: 8, 8: 128}
SHAPES = [(64, 32), (192, 576), (1, 32), (16, 33), (100, 100), (129, 1000)]
"""Rows and columns; most are multiples of nothing."""
NUM_TOKENS = [1, 2, 3, 8, 33, 300]


def random_matrix(num_rows: int, num_columns: int, num_bits: int) -> CodedRows:
    """Codes of all values, with scales and offsets that bfloat16 has."""
    generator = torch.Generator().manual_seed(num_rows * num_columns)
    num_groups = -(-num_columns // 32)
    codes = torch.randint(0, 1 << num_bits, (num_rows, num_columns), generator=generator)
    scales = torch.rand(num_rows, num_groups, generator=generator) * 0.02
    offsets = torch.randn(num_rows, num_groups, generator=generator) * 0.01
    rounded = [each.bfloat16().float() for each in (scales, offsets)]
    return CodedRows(codes.to(torch.uint8), *rounded)


def random_hidden(num_tokens: int, num_columns: int) -> torch.Tensor:
    """Activations that bfloat16 has, so that only the product is judged."""
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(num_tokens, num_columns, generator=generator).bfloat16().float()


def packed(num_bits: int, *parts: CodedRows) -> PackedRows:
    num_rows = sum(len(part.codes) for part in parts)
    packed_type = Packed4 if num_bits == 4 else Packed8
    return packed_type(parts, num_rows, parts[0].codes.shape[1])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize(("num_rows", "num_columns"), SHAPES)
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_a_product_is_the_plain_product(
    num_bits: int, num_rows: int, num_columns: int, num_tokens: int
) -> None:
    """Within the rounding of a product to bfloat16 where the operator multiplies.

    In 8 bits the offsets of both halves are rounded too, by 1/64 of a step.
    """
    matrix = random_matrix(num_rows, num_columns, num_bits)
    layer = packed(num_bits, matrix)
    hidden = random_hidden(num_tokens, num_columns)
    expected = hidden @ matrix.values(MIDDLE[num_bits]).T
    found = layer(hidden)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert relative_error(found, expected) < (0.004 if num_tokens <= MAX_FEW_TOKENS else 0.001)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("num_tokens", [1, MAX_FEW_TOKENS, MAX_FEW_TOKENS + 1, 64])
def test_both_ways_to_multiply_agree(num_bits: int, num_tokens: int) -> None:
    layer = packed(num_bits, random_matrix(192, 570, num_bits))
    hidden = random_hidden(num_tokens, 570)
    by_operator, by_unpacking = layer.by_operator(hidden), layer.by_unpacking(hidden)
    assert 0 < relative_error(by_operator, by_unpacking) < 0.004
    taken = by_operator if num_tokens <= MAX_FEW_TOKENS else by_unpacking
    assert torch.equal(layer(hidden), taken)


@pytest.mark.parametrize("num_tokens", [1, 2, 7, MAX_FEW_TOKENS])
def test_a_token_is_what_it_is_in_any_batch_of_the_operator(num_tokens: int) -> None:
    layer = packed(4, random_matrix(192, 576, 4))
    hidden = random_hidden(MAX_FEW_TOKENS, 576)
    assert torch.equal(layer(hidden[:num_tokens]), layer(hidden)[:num_tokens])


@pytest.mark.parametrize("num_bits", [4, 8])
def test_parts_are_one_matrix(num_bits: int) -> None:
    matrix = random_matrix(300, 96, num_bits)
    parts = [matrix.rows(slice(256)), matrix.rows(slice(256, 300))]
    for num_tokens in (3, 40):
        hidden = random_hidden(num_tokens, 96)
        assert torch.equal(packed(num_bits, *parts)(hidden), packed(num_bits, matrix)(hidden))


def test_unpacking_in_several_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = packed(4, random_matrix(300, 96, 4))
    hidden = random_hidden(40, 96)
    whole = layer(hidden)
    monkeypatch.setattr("stage_server.model.cpu_grouped_rows._UNPACKED_ELEMENTS", 1)
    torch.testing.assert_close(layer(hidden), whole, rtol=1e-6, atol=1e-6)


def test_a_layer_puts_pieces_together_and_adds_the_bias() -> None:
    first, second = random_matrix(70, 64, 4), random_matrix(10, 64, 8)
    bias = torch.arange(80.0)
    layer = GroupedLinear([packed(4, first), packed(8, second)], bias)
    hidden = random_hidden(6, 64).view(2, 3, 64)
    weight = torch.cat((first.values(8), second.values(128)))
    found = layer(hidden)
    assert found.shape == (2, 3, 80)
    assert relative_error(found, hidden @ weight.T + bias) < 0.002


@pytest.mark.parametrize(("code_bits", "num_bits"), [(4, 4), (4, 8), (5, 8), (8, 8)])
def test_codes_of_files_are_kept(code_bits: int, num_bits: int) -> None:
    rng = np.random.default_rng(code_bits)
    rows = GroupedRows(
        rng.integers(0, 1 << code_bits, (6, 64)).astype(np.uint8),
        1 << (code_bits - 1),
        rng.random((6, 2), np.float32),
        rng.normal(size=(6, 2)).astype(np.float32),
    )
    found = kept(iter([rows.rows(slice(4)), rows.rows(slice(4, 6))]), code_bits, num_bits)
    np.testing.assert_allclose(found.values(MIDDLE[num_bits]), rows.values(), rtol=1e-6, atol=1e-6)


def test_groups_of_16_are_rounded_in_8_bits() -> None:
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 64, (6, 64)).astype(np.uint8)
    rows = GroupedRows(codes, 32, rng.random((6, 4), np.float32), None)
    found = kept(iter([rows]), 6, 8).values(128).numpy()
    steps = rows.scales.reshape(6, 2, 2).max(-1).repeat(32, 1) * 32 / 127
    assert (np.abs(found - rows.values()) <= 0.55 * steps).all()


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("num_columns", [64, 50])
def test_rounding_is_off_by_about_half_a_step(num_bits: int, num_columns: int) -> None:
    values = torch.randn(40, num_columns, generator=torch.Generator().manual_seed(1))
    values[0] = 0
    values[1] = 0.25
    found = quantized(values, num_bits)
    steps = found.scales.repeat_interleave(32, 1)[:, :num_columns]
    # Scales and offsets are rounded before codes are chosen: the ends of a group may be beyond.
    assert ((found.values(MIDDLE[num_bits]) - values).abs() <= 0.6 * steps + 0.004).all()
    # What has one value is exact: 0 always, others where offsets say them.
    num_exact = 2 if num_bits == 4 else 1
    assert torch.equal(found.values(MIDDLE[num_bits])[:num_exact], values[:num_exact])


@pytest.mark.parametrize("has_offsets", [False, True])
def test_an_embedding_in_8_bits_gives_its_rows(has_offsets: bool) -> None:
    matrix = random_matrix(50, 70, 8)
    if not has_offsets:
        matrix = matrix._replace(offsets=torch.zeros_like(matrix.offsets))
    embedding = CodedEmbedding([matrix.rows(slice(20)), matrix.rows(slice(20, 50))], 50, 70, CPU)
    token_ids = torch.tensor([49, 0, 7, 7])
    torch.testing.assert_close(embedding(token_ids), matrix.values(128)[token_ids])
    num_bytes = sum(buffer.nbytes for buffer in embedding.buffers())
    assert num_bytes == 50 * (3 * 32 + 3 * (4 if has_offsets else 2))


@pytest.fixture
def unknown_operator() -> Iterator[None]:
    """Forgets what was found out about the operator, before and after."""
    for found in (int4_operator.operator_failure, int4_operator.found_block_rows):
        found.cache_clear()
    yield
    for found in (int4_operator.operator_failure, int4_operator.found_block_rows):
        found.cache_clear()


@pytest.mark.parametrize("block_rows", [32, 64])
def test_codes_are_unpacked_from_the_blocks_of_any_cpu(
    block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of AVX2 have 32 rows, of AVX-512 64; packed by hand, as torch's source says."""
    monkeypatch.setattr(int4_operator, "found_block_rows", lambda: block_rows)
    codes = random_matrix(128, 96, 4).codes
    first, second = codes.view(-1, 2, block_rows // 2, 96).unbind(1)
    halves = (first | second << 4).transpose(1, 2)  # blocks, columns, bytes
    columns = int4_operator.column_halves(halves.reshape(128, 48))
    found = int4_operator.joined_halves(columns & 15, columns >> 4)
    assert torch.equal(found, codes.T)


PRECISION = Precision.uniform(DType.FLOAT32)._replace(weights=INT4)


@pytest.mark.usefixtures("unknown_operator")
@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("multiplied", lambda hidden, codes, _: hidden.new_zeros(len(hidden), len(codes)), "wrong"),
        ("packed_codes", lambda codes: codes.flip(0)[:, ::2].contiguous(), "not known"),
    ],
)
def test_an_operator_that_does_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., torch.Tensor], said: str
) -> None:
    monkeypatch.setattr(int4_operator, name, broken)
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        linear_format(PRECISION, CPU)
    assert caught.value.field == "weights"
    assert caught.value.message.startswith("weights int4 cannot be computed here: torch's operator")
    assert caught.value.message.endswith("; use float16")
