"""Products with matrices in 4 or 8 bits, whose groups of 32 columns share a scale and an offset.

In 4 bits the 16 bytes of a group hold its first 16 codes in their low halves, the others in the
high ones, as GGUF's Q4_0 does.
"""

from typing import Any

import triton
import triton.language as tl

_MIN_DOT_TOKENS = 16
"""Fewest tokens that a product of matrices takes; fewer are padded."""


@triton.jit
def load_codes(codes, row, group, inside, GROUPS: tl.constexpr, BYTES: tl.constexpr):
    """Loads a tile, uint8 `[rows, groups, bytes of a group]`."""
    byte = tl.arange(0, BYTES)[None, None, :]
    at = (row[:, None, None].to(tl.int64) * GROUPS + group[None, :, None]) * BYTES + byte
    return tl.load(codes + at, mask=inside[:, :, None], other=0)


@triton.jit
def load_scales(scales, offsets, row, group, inside, GROUPS: tl.constexpr):
    """Loads scales and offsets, float32 `[rows, groups]`; offsets of None are 0."""
    at = row[:, None].to(tl.int64) * GROUPS + group[None, :]
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
    offset = tl.zeros_like(scale)
    if offsets is not None:
        offset = tl.load(offsets + at, mask=inside, other=0.0).to(tl.float32)
    return scale, offset


@triton.jit
def numbers_of(code, middle, scale, offset, DTYPE: tl.constexpr):
    """Numbers of a tile of codes `[rows, groups, columns]`."""
    numbers = (code.to(tl.float32) - middle) * scale[:, :, None] + offset[:, :, None]
    return numbers.to(DTYPE)


@triton.jit
def load_hidden(hidden, group, COLUMNS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Loads columns `FIRST` to `FIRST + WIDTH` of groups of one token, `[1, groups, columns]`."""
    column = group[:, None] * 32 + FIRST + tl.arange(0, WIDTH)[None, :]
    found = tl.load(hidden + column, mask=column < COLUMNS, other=0.0)
    return found.to(tl.float32)[None, :, :]


@triton.jit
def one_token_kernel(
    hidden,
    codes,
    scales,
    offsets,
    output,
    num_rows,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
):
    """Multiplies one token by `ROWS` rows, in float32. Grid: blocks of rows.

    Codes are added up by groups, and a scale is applied to the sum.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, GROUPS, TILE_GROUPS):
        group = start + tl.arange(0, TILE_GROUPS)
        inside = (row < num_rows)[:, None] & (group < GROUPS)[None, :]
        scale, offset = load_scales(scales, offsets, row, group, inside, GROUPS)
        if BITS == 4:
            packed = load_codes(codes, row, group, inside, GROUPS, 16)
            first = load_hidden(hidden, group, COLUMNS, 0, 16)
            second = load_hidden(hidden, group, COLUMNS, 16, 16)
            low = (packed & 15).to(tl.float32) - 8.0
            high = (packed >> 4).to(tl.float32) - 8.0
            product = low * first + high * second
            group_sum = tl.sum(first + second, 2)
        else:
            packed = load_codes(codes, row, group, inside, GROUPS, 32)
            first = load_hidden(hidden, group, COLUMNS, 0, 32)
            product = (packed.to(tl.float32) - 128.0) * first
            group_sum = tl.sum(first, 2)
        total += tl.sum(tl.sum(product, 2) * scale + offset * group_sum, 1)
    tl.store(output + row, total.to(output.dtype.element_ty), mask=row < num_rows)


@triton.jit
def load_columns(
    hidden,
    token,
    start,
    num_tokens,
    COLUMNS: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Loads columns of the groups from `start` on, transposed: `[SPAN, tokens]`."""
    index = tl.arange(0, SPAN)
    column = (start + index // WIDTH) * 32 + FIRST + index % WIDTH
    inside = (column < COLUMNS)[:, None] & (token < num_tokens)[None, :]
    return tl.load(hidden + token[None, :] * COLUMNS + column[:, None], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["num_tokens"])
def few_tokens_kernel(
    hidden,
    codes,
    scales,
    offsets,
    output,
    num_tokens,
    num_rows,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
):
    """Multiplies up to `TOKENS` tokens by `ROWS` rows. Grid: blocks of rows.

    Numbers are rounded to the dtype of `hidden`; sums are float32.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    dtype: tl.constexpr = hidden.dtype.element_ty
    span: tl.constexpr = TILE_GROUPS * 4 * BITS
    for start in range(0, GROUPS, TILE_GROUPS):
        group = start + tl.arange(0, TILE_GROUPS)
        inside = (row < num_rows)[:, None] & (group < GROUPS)[None, :]
        scale, offset = load_scales(scales, offsets, row, group, inside, GROUPS)
        if BITS == 4:
            packed = load_codes(codes, row, group, inside, GROUPS, 16)
            low = tl.reshape(numbers_of(packed & 15, 8.0, scale, offset, dtype), (ROWS, span))
            high = tl.reshape(numbers_of(packed >> 4, 8.0, scale, offset, dtype), (ROWS, span))
            first = load_columns(hidden, token, start, num_tokens, COLUMNS, 0, 16, span)
            second = load_columns(hidden, token, start, num_tokens, COLUMNS, 16, 16, span)
            total = tl.dot(low, first, total)
            total = tl.dot(high, second, total)
        else:
            packed = load_codes(codes, row, group, inside, GROUPS, 32)
            numbers = tl.reshape(numbers_of(packed, 128.0, scale, offset, dtype), (ROWS, span))
            columns = load_columns(hidden, token, start, num_tokens, COLUMNS, 0, 32, span)
            total = tl.dot(numbers, columns, total)
    at = token[None, :].to(tl.int64) * num_rows + row[:, None]
    inside = (token < num_tokens)[None, :] & (row < num_rows)[:, None]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def unpack_kernel(
    codes,
    scales,
    offsets,
    output,
    num_rows,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
):
    """Writes the numbers of a tile. Grid: blocks of rows, blocks of groups."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1) * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
    inside = (row < num_rows)[:, None] & (group < GROUPS)[None, :]
    scale, offset = load_scales(scales, offsets, row, group, inside, GROUPS)
    width: tl.constexpr = 16 if BITS == 4 else 32
    packed = load_codes(codes, row, group, inside, GROUPS, width)
    column = group[:, None] * 32 + tl.arange(0, width)[None, :]
    place = output + row[:, None, None].to(tl.int64) * COLUMNS + column[None, :, :]
    exists = inside[:, :, None] & (column < COLUMNS)[None, :, :]
    dtype: tl.constexpr = output.dtype.element_ty
    if BITS == 4:
        tl.store(place, numbers_of(packed & 15, 8.0, scale, offset, dtype), mask=exists)
        exists = inside[:, :, None] & (column + 16 < COLUMNS)[None, :, :]
        tl.store(place + 16, numbers_of(packed >> 4, 8.0, scale, offset, dtype), mask=exists)
    else:
        tl.store(place, numbers_of(packed, 128.0, scale, offset, dtype), mask=exists)


def one_token_constants(*, num_columns: int, num_bits: int) -> dict[str, Any]:
    """Returns what `one_token_kernel` is compiled for."""
    return {**_matrix(num_columns, num_bits), "ROWS": 8, "TILE_GROUPS": 8 if num_bits == 4 else 4}


def few_tokens_constants(*, num_tokens: int, num_columns: int, num_bits: int) -> dict[str, Any]:
    """Returns what `few_tokens_kernel` is compiled for; by the power of two above the tokens."""
    return {
        **_matrix(num_columns, num_bits),
        "TOKENS": max(triton.next_power_of_2(num_tokens), _MIN_DOT_TOKENS),
        "ROWS": 32,
        "TILE_GROUPS": 4 if num_bits == 4 else 2,
    }


def unpack_constants(*, num_columns: int, num_bits: int) -> dict[str, Any]:
    """Returns what `unpack_kernel` is compiled for."""
    return {**_matrix(num_columns, num_bits), "ROWS": 8, "TILE_GROUPS": 8}


def _matrix(num_columns: int, num_bits: int) -> dict[str, Any]:
    return {"COLUMNS": num_columns, "GROUPS": -(-num_columns // 32), "BITS": num_bits}
