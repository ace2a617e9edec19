"""Matrices in float16 on the CPU, packed for FBGEMM, which computes in float32.

Half the memory of float32 and, while weights dominate, up to three times its speed. Plain float16
on a CPU is slower than float32.
"""

from typing import Self

import torch

from stage_server.model.embeddings import Embedding, PlainEmbedding
from stage_server.model.linear_format import Linear
from stage_server.model.weights import WeightSource
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import DType, Precision

_PACKED_BLOCK = 512, 16
"""FBGEMM's packed float16 matrices take up whole blocks of inputs x outputs."""


class FbgemmFormat:
    """Implements `LinearFormat` for weights in float16 and activations in float32."""

    @classmethod
    def of(cls, precision: Precision, device: torch.device) -> Self | None:
        """Returns the format; None where precision or device are another's.

        Raises:
            InvalidArgumentError: This build of torch has no FBGEMM.
        """
        formats = precision.weights.dtype, precision.compute
        if formats != (DType.FLOAT16, DType.FLOAT32) or device.type != "cpu":
            return None
        if not has_fbgemm():
            raise InvalidArgumentError(
                "dtype float16 needs FBGEMM on the CPU, which this build of torch lacks; "
                "use float32 or bfloat16",
                field="dtype",
            )
        return cls()

    def load(self, source: WeightSource, weight: str, bias: str | None) -> "FbgemmLinear":
        """Packs a matrix piece by piece as it is read."""
        return FbgemmLinear(source, weight, bias)

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding in float16."""
        return PlainEmbedding(source.load(weight, torch.float16, torch.device("cpu")))

    def sharing(self, embedding: Embedding) -> None:
        """Returns None: rows of a packed matrix cannot be looked up."""


def has_fbgemm() -> bool:
    """Whether this build of torch has FBGEMM, which those for x86 have."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class FbgemmLinear(Linear):
    """A linear layer of float16 weights for float32 activations.

    Packing needs the matrix in float32 at once, so a large one is packed in pieces, whose outputs
    are put together again. A call costs about 30 us whatever the size of its piece.

    Args:
        source: Where the weights are.
        weight: Name of the matrix.
        bias: Name of the bias; None: there is none.
        rows: Rows of the matrix, which are all outputs of the layer; None: all of them.
    """

    def __init__(
        self, source: WeightSource, weight: str, bias: str | None, rows: range | None = None
    ) -> None:
        super().__init__()
        out_features, in_features = source.shape(weight)
        rows = range(out_features) if rows is None else rows
        step = max(source.max_peek_elements // in_features, 1)
        self._pieces = []
        for start in rows[::step]:
            end = min(start + step, rows.stop)
            addend = None if bias is None else source.peek(bias, start, end).clone()
            matrix = source.peek(weight, start, end)
            self._pieces.append(torch.ops.quantized.linear_prepack_fp16(matrix, addend))
            self.packed_bytes += _packed_bytes(in_features, end - start)
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies float32 `[..., in_features]`; returns float32 `[..., out_features]`."""
        if len(self._pieces) == 1:
            output: torch.Tensor = self._multiply(hidden, self._pieces[0])
            return output
        return torch.cat([self._multiply(hidden, piece) for piece in self._pieces], dim=-1)


def _packed_bytes(in_features: int, out_features: int) -> int:
    block_in, block_out = _PACKED_BLOCK
    num_blocks = -(-in_features // block_in) * -(-out_features // block_out)
    return 2 * num_blocks * block_in * block_out
