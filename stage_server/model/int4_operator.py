"""The operator of torch that multiplies by matrices in 4 bits on a CPU, and how it packs codes.

It takes activations in bfloat16 and codes in groups of 32 columns, whose scales and offsets are
bfloat16 too: a number is `scale * (code - 8) + offset`. Codes are packed by blocks of rows, column
after column; the low halves of a column's bytes are the first half of the block's rows. How many
rows a block has depends on the CPU, and torch does not tell: see `aten/src/ATen/native/cpu/
int4mm_kernel.cpp`. So it is found by packing and looking.
"""

from functools import cache

import torch
from torch.nn.functional import pad

from stage_server.model.coded_rows import GROUP_SIZE, ROW_MULTIPLE, CodedRows

_BLOCK_ROWS = (64, 32)
"""Sizes of blocks, of CPUs with AVX-512 and with AVX2."""
_MIDDLE = 8
_BYTES = torch.complex128
"""A type of 16 bytes: half a block of 32 rows moves as one element."""


def packed_codes(codes: torch.Tensor) -> torch.Tensor:
    """Packs codes.

    Args:
        codes: uint8 `[num_rows, num_columns]`, below 16. Rows and columns are added up to a
            multiple of 64 and 32.

    Returns:
        uint8 `[num_rows, num_columns / 2]`.
    """
    num_rows, num_columns = codes.shape
    missing = (0, -num_columns % GROUP_SIZE, 0, -num_rows % ROW_MULTIPLE)
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        pad(codes.int(), missing), 1
    )
    return packed


def packed_scales(scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Packs the scales and offsets, `[num_rows, num_groups]`, of as many rows as `packed_codes`.

    Returns:
        bfloat16 `[num_groups, num_rows, 2]`.
    """
    both = torch.stack((scales, offsets), dim=-1).bfloat16()
    missing = -len(scales) % ROW_MULTIPLE
    return pad(both, (0, 0, 0, 0, 0, missing)).transpose(0, 1).contiguous()


def multiplied(hidden: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiplies by a packed matrix.

    Args:
        hidden: bfloat16 `[num_tokens, num_columns]`.
        codes: As `packed_codes` returns them.
        scales: As `packed_scales` returns them.

    Returns:
        bfloat16 `[num_tokens, num_rows]`.
    """
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        hidden, codes, GROUP_SIZE, scales
    )
    return product


def column_halves(codes: torch.Tensor) -> torch.Tensor:
    """Returns packed codes by columns: a view, uint8 `[num_columns, num_blocks, block_rows / 2]`.

    Bytes of one column and block hold the first half of the block's rows in their low halves.
    """
    block_rows = found_block_rows()
    assert block_rows is not None, "a format is made only where the operator works"
    num_rows, num_bytes = codes.shape
    return codes.view(num_rows // block_rows, 2 * num_bytes, -1).transpose(0, 1)


def joined_halves(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Puts the halves of the rows of each block together, a byte for a code.

    Args:
        first: uint8, of the shape that `column_halves` returns.
        second: The same.

    Returns:
        uint8 `[num_columns, num_rows]`.
    """
    halves = [
        half.contiguous().view(_BYTES).view(*half.shape[:2], 1, -1) for half in (first, second)
    ]
    return torch.cat(halves, dim=2).view(torch.uint8).view(len(first), -1)


@cache
def found_block_rows() -> int | None:
    """Packs a matrix; returns how many rows a block has, None if they are packed otherwise.

    Raises:
        AttributeError: This build of torch does not have the operator.
        RuntimeError: It does not work on this CPU.
    """
    codes = torch.arange(2 * ROW_MULTIPLE * GROUP_SIZE).view(-1, GROUP_SIZE)
    codes = (codes * 7919 // 16 % 16).to(torch.uint8)
    packed = packed_codes(codes)
    for block_rows in _BLOCK_ROWS:
        blocks = packed.view(-1, GROUP_SIZE, block_rows // 2)
        rows = torch.cat((blocks & 15, blocks >> 4), dim=-1).transpose(1, 2)
        if torch.equal(rows.reshape(-1, GROUP_SIZE), codes):
            return block_rows
    return None


@cache
def operator_failure() -> str | None:
    """Multiplies by a small matrix; returns what is wrong with the operator, or None."""
    codes = torch.arange(ROW_MULTIPLE * 64, dtype=torch.int16).view(-1, 64).to(torch.uint8) % 16
    scales = torch.linspace(0.01, 0.02, 2 * ROW_MULTIPLE).view(-1, 2).bfloat16().float()
    hidden = torch.linspace(-1, 1, 3 * 64).view(3, 64).bfloat16()
    try:
        block_rows = found_block_rows()
        found = multiplied(hidden, packed_codes(codes), packed_scales(scales, -scales)).float()
    except (AttributeError, RuntimeError) as error:
        return f"is not there ({' '.join(str(error).split()[:20])})"
    if block_rows is None:
        return "packs them for this CPU in a way that is not known"
    expected = hidden.float() @ CodedRows(codes, scales, -scales).values(_MIDDLE).T
    if not torch.allclose(found, expected, rtol=0.02, atol=0.01 * expected.abs().max().item()):
        return "gives wrong products on this CPU"
    return None
