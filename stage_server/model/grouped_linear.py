"""Matrices in 4 or 8 bits on the CPU, multiplied by an operator of torch.

The operator takes codes of 4 bits in groups of 32 columns, whose scale and offset are bfloat16, and
activations in bfloat16. A code of 8 bits is two of 4, `16 * high + low`, at one scale: two
products.
"""

from collections.abc import Iterator
from functools import cache
from typing import Self

import torch
from torch import nn

from stage_server.model.coded_rows import GROUP_SIZE, CodedRows, kept, quantized
from stage_server.model.fbgemm_linear import FbgemmLinear
from stage_server.model.linear_format import Linear
from stage_server.model.weights import Run, WeightSource
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import FEW_BITS, INT4, DType, Precision
from stagecoach.model_files.weight_digest import HEAD

_ROW_BLOCK = 64
"""Rows that the operator packs together, on any CPU."""
_ROW_MULTIPLE = 16
"""The operator takes a multiple of so many rows."""


class GroupedFormat:
    """Implements `LinearFormat` for weights in few bits and activations in float32.

    A matrix that files keep in no more bits is kept as it is there. The head is kept in float16,
    whose logits are float32: those that the operator rounds to bfloat16 cost more than all the rest.

    Args:
        num_bits: Most bits of a code, 4 or 8.
        keeps_plain: Keep matrices of plain numbers in float16, as some are in a file of few bits.
    """

    embedding_dtype = torch.float16

    def __init__(self, num_bits: int, *, keeps_plain: bool) -> None:
        self._num_bits = num_bits
        self._keeps_plain = keeps_plain

    @classmethod
    def of(cls, precision: Precision, device: torch.device, *, keeps_plain: bool) -> Self | None:
        """Returns the format; None where precision or device are another's.

        Raises:
            InvalidArgumentError: This torch does not multiply such weights on this CPU.
        """
        weights, compute = precision.weights, precision.compute
        if weights not in FEW_BITS.values() or compute is not DType.FLOAT32 or device.type != "cpu":
            return None
        failure = operator_failure()
        if failure is not None:
            raise InvalidArgumentError(
                f"weights {weights.name} need an operator of torch, which {failure}; "
                "use float16 or float32",
                field="weights",
            )
        return cls(4 if weights == INT4 else 8, keeps_plain=keeps_plain)

    def load(self, source: WeightSource, weight: str, bias: str | None) -> Linear:
        """Packs a matrix piece by piece as it is read."""
        if weight == HEAD:
            return FbgemmLinear(source, weight, bias)
        pieces = [self._piece(source, weight, run) for run in source.runs(weight)]
        addend = None if bias is None else source.load(bias, torch.float32, torch.device("cpu"))
        return GroupedLinear(pieces, addend)

    def _piece(self, source: WeightSource, weight: str, run: Run) -> nn.Module:
        most_bits = self._num_bits
        if run.code_bits is None and self._keeps_plain:
            return FbgemmLinear(source, weight, None, range(run.start, run.end))
        kept_bits = None if run.code_bits is None or run.code_bits > most_bits else run.code_bits
        num_bits = most_bits if kept_bits is None else 4 if kept_bits <= 4 else 8
        rows = max(source.max_peek_elements // source.shape(weight)[1] // _ROW_BLOCK, 1)
        step = rows * _ROW_BLOCK

        def parts() -> Iterator[CodedRows]:
            for start in range(run.start, run.end, step):
                end = min(start + step, run.end)
                if kept_bits is None:
                    yield quantized(source.peek(weight, start, end), num_bits)
                else:
                    yield kept(source.groups(weight, start, end), kept_bits, num_bits)

        packed_type = Packed4 if num_bits == 4 else Packed8
        return packed_type(parts(), run.end - run.start)

    def sharing(self, embedding: torch.Tensor) -> None:
        """Returns None: rows of a packed matrix cannot be looked up."""


class GroupedLinear(Linear):
    """A linear layer of pieces, each of some of its outputs.

    Args:
        pieces: They multiply `[num_tokens, in_features]`.
        bias: `[out_features]`, or None.
    """

    def __init__(self, pieces: list[nn.Module], bias: torch.Tensor | None) -> None:
        super().__init__()
        self._pieces = nn.ModuleList(pieces)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[..., in_features]`; returns float32 `[..., out_features]`."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        outputs = [piece(rows) for piece in self._pieces]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*hidden.shape[:-1], -1)


class Packed4(nn.Module):
    """Rows of a matrix in 4 bits.

    Args:
        parts: The rows; all but the last a multiple of 64 of them.
        num_rows: How many they are.
    """

    def __init__(self, parts: Iterator[CodedRows], num_rows: int) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        packed, scales = [], []
        for part in parts:
            packed.append(_packed(part.codes))
            scales.append(_scales(part.scales, part.offsets))
        self.packed = nn.Buffer(torch.cat(packed))
        self.scales = nn.Buffer(torch.cat(scales, dim=1))
        self._num_padded = _num_missing(part.codes.shape[1], GROUP_SIZE)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[num_tokens, in_features]`; returns float32."""
        rows = nn.functional.pad(hidden.bfloat16(), (0, self._num_padded))
        product = self._multiply(rows, self.packed, GROUP_SIZE, self.scales)
        return product[:, : self._num_rows].float()


class Packed8(nn.Module):
    """Rows of a matrix in 8 bits.

    Both halves of a code, each less 8, have one scale and one offset, so that a number is
    `scale * (code - 128) + offset` where theirs is `(offset + 8 * scale) / 17`.

    Args:
        parts: The rows; all but the last a multiple of 64 of them.
        num_rows: How many they are.
    """

    def __init__(self, parts: Iterator[CodedRows], num_rows: int) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        high, low, scales = [], [], []
        for part in parts:
            high.append(_packed(part.codes >> 4))
            low.append(_packed(part.codes & 15))
            rounded = part.scales.bfloat16().float()  # which the halves add up with
            scales.append(_scales(rounded, (part.offsets + 8 * rounded) / 17))
        self.high, self.low = nn.Buffer(torch.cat(high)), nn.Buffer(torch.cat(low))
        self.scales = nn.Buffer(torch.cat(scales, dim=1))
        self._num_padded = _num_missing(part.codes.shape[1], GROUP_SIZE)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[num_tokens, in_features]`; returns float32."""
        rows = nn.functional.pad(hidden.bfloat16(), (0, self._num_padded))
        high, low = (
            self._multiply(rows, half, GROUP_SIZE, self.scales) for half in (self.high, self.low)
        )
        product: torch.Tensor = torch.add(low.float(), high, alpha=16)
        return product[:, : self._num_rows]


def _num_missing(count: int, multiple: int) -> int:
    return -count % multiple


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Packs uint8 `[num_rows, num_columns]`, with more rows and columns where those are odd."""
    num_rows, num_columns = codes.shape
    missing = (
        *(0, _num_missing(num_columns, GROUP_SIZE)),
        *(0, _num_missing(num_rows, _ROW_MULTIPLE)),
    )
    padded = nn.functional.pad(codes.int(), missing)
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)
    return packed


def _scales(scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Returns bfloat16 `[num_groups, num_rows, 2]`, of as many rows as there are packed ones."""
    missing = _num_missing(len(scales), _ROW_MULTIPLE)
    both = torch.stack((scales, offsets), dim=-1).bfloat16()
    return nn.functional.pad(both, (0, 0, 0, 0, 0, missing)).transpose(0, 1).contiguous()


@cache
def operator_failure() -> str | None:
    """Multiplies a small matrix; returns what is wrong with the operator, or None."""
    codes = torch.arange(16 * 64, dtype=torch.uint8).view(16, 64) % 16
    scales = torch.linspace(0.01, 0.02, 32).view(16, 2).bfloat16().float()
    rows = torch.linspace(-1, 1, 3 * 64).view(3, 64).bfloat16().float()
    part = CodedRows(codes, scales, -scales)
    try:
        found = Packed4(iter([part]), 16)(rows)
    except (AttributeError, RuntimeError) as error:
        return f"this build lacks ({str(error).splitlines()[0]})"
    expected = rows @ part.values(8).T
    if not torch.allclose(found, expected, rtol=0.02, atol=0.01 * expected.abs().max().item()):
        return "gives wrong products on this CPU"
    return None
