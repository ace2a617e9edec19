"""Rows of matrices in 4 or 8 bits on the CPU."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from stage_server.model.coded_rows import GROUP_SIZE, ROW_MULTIPLE, CodedRows
from stage_server.model.embeddings import PlainEmbedding
from stage_server.model.fbgemm_linear import FbgemmLinear, has_fbgemm
from stage_server.model.int4_operator import (
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
        packed_type = Packed4 if num_bits == 4 else Packed8
        return packed_type(parts, num_rows, num_columns)

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding in float16."""
        return PlainEmbedding(source.load(weight, torch.float16, self.device))

    def sharing(self, embedding: PlainEmbedding) -> None:
        """Returns None: rows that FBGEMM packs cannot be looked up."""


class PackedRows(nn.Module, ABC):
    """Rows of a matrix whose codes the operator packs.

    Few tokens are multiplied by the operator, in bfloat16. For many its work grows faster than that
    of unpacking a part of the matrix after another and multiplying in float32.

    Args:
        num_rows: How many rows there are.
        num_columns: How many columns.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._num_added = -num_columns % GROUP_SIZE
        self._packed_shape = num_rows + -num_rows % ROW_MULTIPLE, num_columns + self._num_added
        packed_rows, packed_columns = self._packed_shape
        self.scales = nn.Buffer(
            torch.empty(packed_columns // GROUP_SIZE, packed_rows, 2, dtype=torch.bfloat16)
        )

    def _empty_codes(self) -> torch.Tensor:
        packed_rows, packed_columns = self._packed_shape
        return torch.empty(packed_rows, packed_columns // 2, dtype=torch.uint8)

    def _placed(self, parts: Iterable[CodedRows]) -> Iterator[tuple[slice, CodedRows]]:
        """Yields where the packed rows of each part belong."""
        end = 0
        for part in parts:
            start, end = end, end + len(part.codes) + -len(part.codes) % ROW_MULTIPLE
            yield slice(start, end), part
        assert end == self._packed_shape[0], "the parts are all rows"

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[num_tokens, in_features]`; returns float32."""
        is_few = len(hidden) <= MAX_FEW_TOKENS
        return self.by_operator(hidden) if is_few else self.by_unpacking(hidden)

    def by_operator(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, with activations and products in bfloat16."""
        rows = self._padded(hidden).bfloat16().contiguous()
        return self._by_operator(rows)[:, : self._num_rows]

    def by_unpacking(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, in float32."""
        hidden = self._padded(hidden)
        num_tokens, num_columns = hidden.shape
        num_rows = self.scales.shape[1]
        step = max(_UNPACKED_ELEMENTS // num_columns // ROW_MULTIPLE, 1) * ROW_MULTIPLE
        group_sums = hidden.view(num_tokens, -1, GROUP_SIZE).sum(-1)
        products = []
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            scales, offsets = self._scales(rows)
            matrix = self._codes(rows).float().view(-1, GROUP_SIZE, rows.stop - start)
            matrix *= scales.unsqueeze(1)
            product = hidden @ matrix.view(num_columns, -1)
            products.append(product.addmm_(group_sums, offsets))
        return torch.cat(products, dim=-1)[:, : self._num_rows]

    def _padded(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(hidden, (0, self._num_added)) if self._num_added else hidden

    @abstractmethod
    def _by_operator(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies bfloat16; returns float32."""

    @abstractmethod
    def _codes(self, rows: slice) -> torch.Tensor:
        """Unpacks rows, whole blocks: uint8 `[num_columns, num_rows]`."""

    @abstractmethod
    def _scales(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales, and offsets of code 0: float32 `[num_groups, num_rows]`."""


class Packed4(PackedRows):
    """Rows in 4 bits.

    Args:
        parts: The rows; all but the last a multiple of 64 of them.
        num_rows: How many rows there are.
        num_columns: How many columns.
    """

    def __init__(self, parts: Iterable[CodedRows], num_rows: int, num_columns: int) -> None:
        super().__init__(num_rows, num_columns)
        self.codes = nn.Buffer(self._empty_codes())
        for rows, part in self._placed(parts):
            self.codes[rows] = packed_codes(part.codes)
            self.scales[:, rows] = packed_scales(part.scales, part.offsets)

    def _by_operator(self, hidden: torch.Tensor) -> torch.Tensor:
        return multiplied(hidden, self.codes, self.scales).float()

    def _codes(self, rows: slice) -> torch.Tensor:
        packed = column_halves(self.codes[rows])
        return joined_halves(packed & 15, packed >> 4)

    def _scales(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scales, offsets = self.scales[:, rows].float().unbind(-1)
        return scales, offsets - 8 * scales


class Packed8(PackedRows):
    """Rows in 8 bits, as two matrices of 4: a code is `16 * high + low`.

    Both halves of a code, each less 8, have one scale and one offset, so that a number is
    `scale * (code - 128) + offset` where theirs is `(offset + 8 * scale) / 17`.

    Args:
        parts: The rows; all but the last a multiple of 64 of them.
        num_rows: How many rows there are.
        num_columns: How many columns.
    """

    def __init__(self, parts: Iterable[CodedRows], num_rows: int, num_columns: int) -> None:
        super().__init__(num_rows, num_columns)
        self.high, self.low = nn.Buffer(self._empty_codes()), nn.Buffer(self._empty_codes())
        for rows, part in self._placed(parts):
            self.high[rows] = packed_codes(part.codes >> 4)
            self.low[rows] = packed_codes(part.codes & 15)
            scales = part.scales.bfloat16().float()  # which the halves add up with
            self.scales[:, rows] = packed_scales(scales, (part.offsets + 8 * scales) / 17)

    def _by_operator(self, hidden: torch.Tensor) -> torch.Tensor:
        high, low = (multiplied(hidden, half, self.scales) for half in (self.high, self.low))
        product: torch.Tensor = torch.add(low.float(), high, alpha=16)
        return product

    def _codes(self, rows: slice) -> torch.Tensor:
        high, low = column_halves(self.high[rows]), column_halves(self.low[rows])
        return joined_halves(high << 4 | low & 15, high & 0xF0 | low >> 4)

    def _scales(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scales, offsets = self.scales[:, rows].float().unbind(-1)
        return scales, 17 * offsets - 136 * scales
