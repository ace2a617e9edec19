"""What the stage calls of our kernels for matrices in 4 or 8 bits."""

import torch

from stage_server.kernels import operators  # noqa: F401  # defines torch.ops.stagecoach


def packed_groups(codes: torch.Tensor, *, num_bits: int) -> torch.Tensor:
    """Packs codes as the kernels read them.

    Args:
        codes: uint8 `[num_rows, num_columns]`, below `2 ** num_bits`.
        num_bits: 4 or 8.

    Returns:
        uint8 `[num_rows, bytes of a row]`, whole groups of 32 columns.
    """
    groups = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 32)).view(len(codes), -1, 32)
    if num_bits == 4:
        groups = groups[..., :16] | groups[..., 16:] << 4
    return groups.reshape(len(codes), -1)


def product(
    hidden: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    *,
    num_bits: int,
) -> torch.Tensor:
    """Multiplies by packed rows, with sums in float32; launches one kernel.

    Args:
        hidden: `[num_tokens, num_columns]`, contiguous: one token of any float dtype, or up to 64
            in float16 or bfloat16, to which numbers of the matrix are rounded then.
        codes: As `packed_groups` returns them.
        scales: float16 `[num_rows, num_groups]`.
        offsets: As `scales`; None: all are 0.
        num_bits: 4 or 8.

    Returns:
        `[num_tokens, num_rows]`, in the dtype of `hidden`.
    """
    output: torch.Tensor = torch.ops.stagecoach.grouped_product(
        hidden, codes, scales, offsets, num_bits
    )
    return output


def unpacked(
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    *,
    num_columns: int,
    num_bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the numbers of packed rows, `[num_rows, num_columns]`; launches one kernel.

    Args:
        codes: As `packed_groups` returns them, contiguous.
        scales: float16 `[num_rows, num_groups]`.
        offsets: As `scales`; None: all are 0.
        num_columns: Columns of the matrix.
        num_bits: 4 or 8.
        dtype: Dtype of the numbers.
    """
    numbers: torch.Tensor = torch.ops.stagecoach.unpack_groups(
        codes, scales, offsets, num_columns, num_bits, dtype
    )
    return numbers
