"""Rows of matrices in 4 or 8 bits on the CPU."""

from collections.abc import Iterable

import torch
from torch import nn

from stage_server.model.coded_rows import GROUP_SIZE, CodedRows
from stage_server.model.embeddings import PlainEmbedding
from stage_server.model.fbgemm_linear import FbgemmLinear, has_fbgemm
from stage_server.model.int4_operator import (
    ROW_MULTIPLE,
    column_halves,
    joined_halves,
    multiplied,
    operator_failure,
    packed_codes,
    packed_scales,
)
from stage_server.model.weights import WeightSource
from stagecoach.contract.precision import DType

MAX_FEW_TOKENS = 32
"""Tokens that the operator multiplies; more are faster by a matrix that is unpacked first."""
_UNPACKED_ELEMENTS = 1 << 20
"""Numbers that are unpacked at once, 4 MiB."""


class CpuRows:
    """Implements `RowForms` for activations in float32, with plain numbers in float16."""

    device = torch.device("cpu")
    compute_dtype = torch.float32

    @property
    def failure(self) -> str | None:
        """Why this torch does not multiply such weights on this CPU, or None."""
        failure = operator_failure()
        if failure is not None:
            return f"torch's operator for 4 bits {failure}"
        return None if has_fbgemm() else "this build of torch has no FBGEMM"

    @property
    def instead(self) -> DType:
        """In which dtype weights can be kept."""
        return DType.FLOAT16 if has_fbgemm() else DType.FLOAT32

    def plain(self, source: WeightSource, weight: str, rows: range) -> nn.Module:
        """Packs rows of plain numbers for FBGEMM."""
        return FbgemmLinear(source, weight, None, rows)

    def packed(
        self, parts: Iterable[CodedRows], num_rows: int, num_columns: int, num_bits: int
    ) -> nn.Module:
        """Packs codes for torch's operator."""
        return packed_rows(parts, num_rows, num_columns, num_bits)

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding in float16."""
        return PlainEmbedding(source.load(weight, torch.float16, self.device))


class Packed4(nn.Module):
    """Rows of a matrix in 4 bits.

    Few tokens are multiplied by the operator. For many its work grows faster than that of unpacking
    a part of the matrix after another and multiplying in float32. Both round activations and
    products to bfloat16, so that a token comes out the same in any number, but for the order of
    sums: else what is computed again, after a fault, would end in another text.

    Args:
        codes: As `packed_codes` returns them.
        scales: As `packed_scales` returns them.
        num_rows: How many rows there are.
        num_columns: How many columns.
    """

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, num_rows: int, num_columns: int
    ) -> None:
        super().__init__()
        self.codes = nn.Buffer(codes)
        self.scales = nn.Buffer(scales)
        self._num_rows = num_rows
        self._num_added = -num_columns % GROUP_SIZE

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[num_tokens, in_features]`; returns float32."""
        is_few = len(hidden) <= MAX_FEW_TOKENS
        return self.by_operator(hidden) if is_few else self.by_unpacking(hidden)

    def by_operator(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, by the operator."""
        return multiplied(self._rounded(hidden), self.codes, self.scales)[
            :, : self._num_rows
        ].float()

    def by_unpacking(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, by matrices in float32."""
        hidden = self._rounded(hidden).float()
        num_tokens, num_columns = hidden.shape
        num_rows = len(self.codes)
        step = max(_UNPACKED_ELEMENTS // num_columns // ROW_MULTIPLE, 1) * ROW_MULTIPLE
        group_sums = hidden.view(num_tokens, -1, GROUP_SIZE).sum(-1)
        products = []
        for start in range(0, num_rows, step):
            end = min(start + step, num_rows)
            packed = column_halves(self.codes[start:end])
            scales, offsets = self.scales[:, start:end].float().unbind(-1)
            codes = joined_halves(packed & 15, packed >> 4)
            matrix = codes.float().view(-1, GROUP_SIZE, end - start)
            matrix *= scales.unsqueeze(1)
            product = hidden @ matrix.view(num_columns, -1)
            product.addmm_(group_sums, offsets - 8 * scales)
            products.append(product.bfloat16())
        return torch.cat(products, dim=-1)[:, : self._num_rows].float()

    def _rounded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Bfloat16, with zeros for the columns that fill the last group."""
        hidden = hidden.bfloat16()
        return nn.functional.pad(hidden, (0, self._num_added)) if self._num_added else hidden


class Packed8(nn.Module):
    """Rows of a matrix in 8 bits, as two matrices of 4: a code is `16 * high + low`.

    Args:
        high: The matrix of the high halves.
        low: That of the low ones.
    """

    def __init__(self, high: Packed4, low: Packed4) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[num_tokens, in_features]`; returns float32."""
        product: torch.Tensor = torch.add(self.low(hidden), self.high(hidden), alpha=16)
        return product


def packed_rows(
    parts: Iterable[CodedRows], num_rows: int, num_columns: int, num_bits: int
) -> Packed4 | Packed8:
    """Packs rows; arguments as of `RowForms.packed`.

    Both halves of a code of 8 bits, each less 8, have one scale and one offset, so that a number is
    `scale * (code - 128) + offset` where theirs is `(offset + 8 * scale) / 17`.
    """
    packed_num_rows = num_rows + -num_rows % ROW_MULTIPLE
    num_groups = -(-num_columns // GROUP_SIZE)
    scales = torch.empty(num_groups, packed_num_rows, 2, dtype=torch.bfloat16)
    halves = [
        torch.empty(packed_num_rows, num_groups * GROUP_SIZE // 2, dtype=torch.uint8)
        for _ in range(num_bits // 4)
    ]
    end = 0
    for part in parts:
        rows = slice(end, end + len(part.codes) + -len(part.codes) % ROW_MULTIPLE)
        end = rows.stop
        if num_bits == 4:
            halves[0][rows] = packed_codes(part.codes)
            scales[:, rows] = packed_scales(part.scales, part.offsets)
            continue
        halves[0][rows] = packed_codes(part.codes >> 4)
        halves[1][rows] = packed_codes(part.codes & 15)
        rounded = part.scales.bfloat16().float()  # which the halves add up with
        scales[:, rows] = packed_scales(rounded, (part.offsets + 8 * rounded) / 17)
    assert end == packed_num_rows, "the parts are all rows"
    matrices = [Packed4(half, scales, num_rows, num_columns) for half in halves]
    return matrices[0] if num_bits == 4 else Packed8(*matrices)
