"""Rows of matrices in 4 or 8 bits on CUDA, multiplied by kernels of ours."""

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import product

import torch
from torch import nn

from stage_server.core.torch_dtypes import torch_dtype
from stage_server.kernels import grouped
from stage_server.kernels.kernels import Kernels
from stage_server.model.coded_rows import CodedRows, quantized
from stage_server.model.dense_linear import DenseLinear
from stage_server.model.embeddings import PlainEmbedding
from stage_server.model.stored_groups import StoredGroups
from stage_server.model.weights import WeightSource
from stagecoach.contract.precision import DType
from stagecoach.roofline.few_bits import MAX_FEW_TOKENS, unpacked_rows

_WARM_UP_TOKENS = (1, 16, 32, MAX_FEW_TOKENS, MAX_FEW_TOKENS + 1)
"""Numbers of tokens that take different kernels, or kernels compiled differently."""
_CHECKED_SHAPE = 100, 300
"""Rows and columns, neither whole blocks nor whole groups."""
_CHECKED_TOKENS = (1, 5, MAX_FEW_TOKENS, 100)
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference from the twin, as a share of the largest element."""


class CudaRows:
    """Implements `RowForms` for a CUDA device.

    Args:
        compute: Dtype of activations.
        device: The device; the CPU for Triton's interpreter.
        has_tensor_cores: Whether Triton multiplies matrices of 16 bits on tensor cores; None: as
            the device says.
    """

    def __init__(
        self, compute: DType, device: torch.device, *, has_tensor_cores: bool | None = None
    ) -> None:
        self.device = device
        self.compute_dtype = torch_dtype(compute)
        self.instead = compute
        self._has_tensor_cores = has_tensor_cores

    @cached_property
    def failure(self) -> str | None:
        """Multiplies by small matrices as serving does; what is wrong, or None.

        Raises:
            torch.OutOfMemoryError: The device has no memory left.
            torch.AcceleratorError: The device is lost.
        """
        try:
            for name, difference in self.comparisons():
                if not difference <= TOLERANCES[self.compute_dtype]:  # a NaN differs too
                    return f"{name} differs by {difference:.2g}"
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # Triton and what it calls raise errors of every class
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None

    def comparisons(self) -> Iterator[tuple[str, float]]:
        """Multiplies by small matrices beside the plain product of their numbers.

        Yields:
            What was multiplied, and the largest difference as a share of the largest element.
        """
        generator = torch.Generator().manual_seed(0)
        num_rows, num_columns = _CHECKED_SHAPE
        weight = torch.randn(_CHECKED_SHAPE, generator=generator)
        for num_bits, has_offsets in product((4, 8), (False, True)):
            part = quantized(weight, num_bits)
            offsets = torch.randn(part.scales.shape, generator=generator).half().float()
            part = part._replace(offsets=offsets if has_offsets else torch.zeros_like(offsets))
            rows = self._kernel_rows([part], num_rows, num_columns, num_bits)
            numbers = part.values(1 << (num_bits - 1))
            for num_tokens in _CHECKED_TOKENS:
                hidden = torch.randn(num_tokens, num_columns, generator=generator)
                hidden = hidden.to(self.compute_dtype)
                expected = hidden.float() @ numbers.T
                found = rows(hidden.to(self.device)).float().cpu()
                difference = float((found - expected).abs().max() / expected.abs().max())
                yield f"a product of {num_tokens} tokens in {num_bits} bits", difference

    def plain(self, source: WeightSource, weight: str, rows: range) -> nn.Module:
        """Loads rows of plain numbers in the compute dtype."""
        num_columns = source.shape(weight)[1]
        matrix = torch.empty(len(rows), num_columns, dtype=self.compute_dtype, device=self.device)
        step = max(source.max_peek_elements // num_columns, 1)
        for start in rows[::step]:
            end = min(start + step, rows.stop)
            matrix[start - rows.start : end - rows.start] = source.peek(weight, start, end)
        return DenseLinear(matrix, None)

    def packed(
        self, parts: Iterable[CodedRows], num_rows: int, num_columns: int, num_bits: int
    ) -> nn.Module:
        """Packs codes for the kernels."""
        rows = self._kernel_rows(parts, num_rows, num_columns, num_bits)
        # Each kernel is compiled for a shape when it is first launched, which must not be later.
        for num_tokens in _WARM_UP_TOKENS:
            rows(torch.zeros(num_tokens, num_columns, dtype=self.compute_dtype, device=self.device))
        return rows

    def _kernel_rows(
        self, parts: Iterable[CodedRows], num_rows: int, num_columns: int, num_bits: int
    ) -> "KernelRows":
        return KernelRows(
            parts, num_rows, num_columns, num_bits, self.device, max_few_tokens=self._max_few_tokens
        )

    @cached_property
    def _max_few_tokens(self) -> int:
        if self.compute_dtype == torch.float32:
            return 1
        has_tensor_cores = self._has_tensor_cores
        if has_tensor_cores is None:
            has_tensor_cores = Kernels.of(self.device).has_tensor_cores
        return MAX_FEW_TOKENS if has_tensor_cores else 1

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding in the compute dtype."""
        return PlainEmbedding(source.load(weight, self.compute_dtype, self.device))

    def sharing(self, embedding: PlainEmbedding) -> DenseLinear:
        """Uses the same tensor."""
        return DenseLinear(embedding.weight, None)


class KernelRows(nn.Module):
    """Rows of a matrix whose codes kernels read.

    Few tokens are multiplied by the codes. For many, a part of the matrix after another is unpacked
    to the dtype of the activations, and multiplied by torch.

    Args:
        parts: The rows, one part after another.
        num_rows: How many rows there are.
        num_columns: How many columns.
        num_bits: Bits of a code, 4 or 8.
        device: Where they are to live.
        max_few_tokens: Most tokens that are few.
    """

    def __init__(
        self,
        parts: Iterable[CodedRows],
        num_rows: int,
        num_columns: int,
        num_bits: int,
        device: torch.device,
        *,
        max_few_tokens: int,
    ) -> None:
        super().__init__()
        self._num_columns = num_columns
        self._num_bits = num_bits
        self._max_few_tokens = max_few_tokens
        self._rows = StoredGroups(
            parts, num_rows, device, partial(grouped.packed_groups, num_bits=num_bits)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies `[num_tokens, in_features]`; returns `[num_tokens, out_features]`."""
        if len(hidden) <= self._max_few_tokens:
            return self.by_codes(hidden)
        return self.by_unpacking(hidden)

    def by_codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, for one token, or up to 64 in 16 bits."""
        stored = self._rows
        return grouped.product(
            hidden.contiguous(),
            stored.codes,
            stored.scales,
            stored.offsets,
            num_bits=self._num_bits,
        )

    def by_unpacking(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `forward`, for any number of tokens."""
        stored = self._rows
        output = hidden.new_empty(len(hidden), len(stored))
        step = unpacked_rows(self._num_columns, hidden.itemsize)
        for start in range(0, len(stored), step):
            rows = slice(start, min(start + step, len(stored)))
            matrix = grouped.unpacked(
                stored.codes[rows],
                stored.scales[rows],
                None if stored.offsets is None else stored.offsets[rows],
                num_columns=self._num_columns,
                num_bits=self._num_bits,
                dtype=hidden.dtype,
            )
            torch.mm(hidden, matrix.T, out=output[:, rows])
        return output
