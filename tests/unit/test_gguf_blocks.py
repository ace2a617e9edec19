"""Blocks of GGUF files: their codes and scales stand for what the `gguf` package reads."""

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stagecoach.model_files.gguf_blocks import (
    BLOCK_TYPES,
    code_bits,
    grouped_rows,
)
from stagecoach.model_files.grouped_rows import rounded_rows

NUM_ROWS, NUM_COLUMNS = 5, 768
MAX_CODE = {kind: 2**found.num_bits - 1 for kind, found in BLOCK_TYPES.items()}


def random_rows(kind: GGMLQuantizationType) -> np.ndarray:
    """Any bytes, but for scales, which are ordinary numbers."""
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(kind)
    rows = rng.integers(0, 256, (NUM_ROWS, NUM_COLUMNS // block_size * block_bytes), np.uint8)
    blocks = rows.view(BLOCK_TYPES[kind].block)
    for field in {"scale", "min"} & (blocks.dtype.fields or {}).keys():
        blocks[field] = rng.normal(0, 0.1, blocks.shape)
    if kind is GGMLQuantizationType.MXFP4:
        blocks["exponent"] = rng.integers(0, 130, blocks.shape)
    return rows


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_codes_and_scales_are_what_the_library_reads_bit_for_bit(
    kind: GGMLQuantizationType,
) -> None:
    rows = random_rows(kind)
    assert BLOCK_TYPES[kind].block.itemsize == GGML_QUANT_SIZES[kind][1]
    found = grouped_rows(BLOCK_TYPES[kind], rows)
    expected = gguf.quants.dequantize(rows, kind)
    np.testing.assert_array_equal(found.values(), expected)
    assert found.codes.shape == (NUM_ROWS, NUM_COLUMNS)
    assert found.codes.max() <= MAX_CODE[kind]
    assert found.group_size == (16 if kind is GGMLQuantizationType.Q6_K else 32)


ROUNDED = [
    kind
    for kind, (block_size, _) in GGML_QUANT_SIZES.items()
    if block_size > 1 and kind in gguf.quants._type_traits and kind not in BLOCK_TYPES
]


def test_types_that_are_rounded_are_those_of_two_or_three_bits_and_few_others() -> None:
    names = {kind.name for kind in ROUNDED}
    assert {"Q2_K", "Q3_K", "IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "TQ1_0", "NVFP4"} <= names
    assert all(code_bits(kind) == 8 for kind in ROUNDED)
    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    assert [code_bits(kind) for kind in plain] == [None] * 3
    assert code_bits(GGMLQuantizationType.Q4_K) == 4


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    values = np.random.default_rng(0).normal(size=(NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    values[1, :32] = 0
    found = rounded_rows(values)
    assert found.group_size == 32
    errors = np.abs(found.values() - values).reshape(NUM_ROWS, -1, 32).max(-1)
    assert (errors <= found.scales * 0.5001).all()
    assert found.codes.min() >= 1
    assert found.codes.max() == 255
    np.testing.assert_array_equal(found.values()[1, :32], 0)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_rows_can_be_taken_in_another_order(kind: GGMLQuantizationType) -> None:
    found = grouped_rows(BLOCK_TYPES[kind], random_rows(kind))
    order = np.array([3, 0, 4])
    np.testing.assert_array_equal(found.rows(order).values(), found.values()[order])


def test_a_code_is_a_number_of_the_file() -> None:
    """By hand, of one block: scale 0.5, minimum -1, codes 0 to 15 in low halves, 15 in high."""
    block = np.concatenate(
        (
            np.array([0.5, -1.0], np.float16).view(np.uint8),
            np.arange(16, dtype=np.uint8) | 0xF0,
        )
    )
    found = grouped_rows(BLOCK_TYPES[GGMLQuantizationType.Q4_1], block[None])
    assert found.codes[0].tolist() == [*range(16), *[15] * 16]
    assert found.values()[0].tolist() == [*(code / 2 - 1 for code in range(16)), *[6.5] * 16]
