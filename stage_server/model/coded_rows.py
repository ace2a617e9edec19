"""Rows in few bits in the form that a device packs: groups of 32 columns, and one middle code."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch

from stagecoach.model_files.grouped_rows import GroupedRows

GROUP_SIZE = 32
"""Columns that share a scale and an offset; the last group of a row may have fewer."""

ROW_MULTIPLE = 64
"""Rows that are packed at once are a multiple of so many, but for the last: on any CPU those are
whole blocks of what multiplies by them."""


class CodedRows(NamedTuple):
    """Rows whose numbers are `scale * (code - middle) + offset`.

    The middle of 4 bits is 8, that of 8 bits 128.
    """

    codes: torch.Tensor
    """uint8 `[num_rows, num_columns]`."""
    scales: torch.Tensor
    """float32 `[num_rows, num_groups]`."""
    offsets: torch.Tensor
    """As the scales."""

    def rows(self, wanted: slice | torch.Tensor) -> Self:
        """Some of the rows."""
        return type(self)(self.codes[wanted], self.scales[wanted], self.offsets[wanted])

    def values(self, middle: int) -> torch.Tensor:
        """Returns the numbers, float32 `[num_rows, num_columns]`."""
        scales, offsets = (
            each.repeat_interleave(GROUP_SIZE, 1)[:, : self.codes.shape[1]]
            for each in (self.scales, self.offsets)
        )
        return (self.codes.float() - middle) * scales + offsets


def kept(parts: Iterable[GroupedRows], code_bits: int, num_bits: int) -> CodedRows:
    """Takes over the codes of a file.

    Groups of another size than 32 are rounded to nearest in 8 bits. The only ones are those of 16
    in Q6_K: the larger step of two of them is four times that of what they become.

    Args:
        parts: Rows, one after another.
        code_bits: Bits of their codes, at most `num_bits`.
        num_bits: 4 or 8.
    """
    taken = [_taken(part, code_bits, num_bits) for part in parts]
    return CodedRows(*(torch.cat(column) for column in zip(*taken, strict=True)))


def _taken(rows: GroupedRows, code_bits: int, num_bits: int) -> CodedRows:
    if rows.group_size != GROUP_SIZE:
        return quantized(torch.from_numpy(rows.values()), num_bits)
    # The middle of the codes becomes the middle of all: offsets stay as small as numbers are.
    shift = (1 << (num_bits - 1)) - (1 << (code_bits - 1))
    scales = torch.from_numpy(rows.scales)
    offsets = scales * ((1 << (code_bits - 1)) - rows.zero)
    if rows.offsets is not None:
        offsets += torch.from_numpy(rows.offsets)
    return CodedRows(torch.from_numpy(rows.codes) + shift, scales, offsets)


def quantized(values: torch.Tensor, num_bits: int) -> CodedRows:
    """Rounds numbers to nearest.

    Scales are bfloat16, as the operator has them, so that their rounding is made up for by codes.
    In 8 bits a group is spread about 0; in 4 bits from its least number to its largest.

    Args:
        values: float32 `[num_rows, num_columns]`.
        num_bits: 4 or 8.
    """
    num_rows, num_columns = values.shape
    missing = (0, -num_columns % GROUP_SIZE)
    padded = torch.nn.functional.pad(values.unsqueeze(1), missing, mode="replicate")
    groups = padded.view(num_rows, -1, GROUP_SIZE)
    middle, last = 1 << (num_bits - 1), (1 << num_bits) - 1
    if num_bits == 8:
        scales = groups.abs().amax(-1) / (middle - 1)
        offsets = torch.zeros_like(scales)
    else:
        low, high = groups.aminmax(dim=-1)
        scales = (high - low) / last
        offsets = low + middle * scales
    scales, offsets = scales.bfloat16().float(), offsets.bfloat16().float()
    steps = scales.where(scales > 0, torch.ones_like(scales))
    codes = ((groups - offsets[..., None]) / steps[..., None]).round() + middle
    codes = codes.clamp(0, last).to(torch.uint8).view(num_rows, -1)[:, :num_columns]
    return CodedRows(codes, scales, offsets)
