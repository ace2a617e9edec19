"""Matrix multiplication with loaded weights, in the fastest form that the device has.

On the CPU, float16 weights are packed for FBGEMM, which computes in float32: half the memory of
float32 and, while weights dominate, up to three times its speed. Plain float16 on a CPU is slower
than float32.
"""

from collections.abc import Sequence

import torch
from torch import nn

from stage_server.model.weights import WeightSource
from stagecoach.contract.errors import InvalidArgumentError

_PACKED_BLOCK = 512, 16
"""FBGEMM's packed float16 matrices take up whole blocks of inputs x outputs."""


def packs_float16(dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether weights of this dtype are packed for FBGEMM.

    Raises:
        InvalidArgumentError: They would be, but this build of torch has no FBGEMM.
    """
    if dtype != torch.float16 or device.type != "cpu":
        return False
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise InvalidArgumentError(
            "dtype float16 needs FBGEMM on the CPU, which this build of torch lacks; "
            "use float32 or bfloat16",
            field="dtype",
        )
    return True


class PackedLinear(nn.Module):
    """`input @ weight.T + bias` with float16 weights and float32 activations, on the CPU.

    Packing needs the matrix in float32 at once, so a large one is packed in pieces, whose outputs
    are put together again. A call costs about 30 us whatever the size of its piece.

    Args:
        source: Where the weights are.
        weights: Names of the matrices, stacked along the output.
        biases: Names of their biases, or empty.
    """

    def __init__(self, source: WeightSource, weights: Sequence[str], biases: Sequence[str]) -> None:
        super().__init__()
        self.out_features, self.in_features = source.shape(weights)
        self.num_bytes = 0
        step = max(source.max_peek_elements // self.in_features, 1)
        self._pieces = []
        for start in range(0, self.out_features, step):
            end = min(start + step, self.out_features)
            bias = source.peek(biases, start, end).clone() if biases else None
            weight = source.peek(weights, start, end)
            self.num_bytes += _packed_bytes(self.in_features, end - start)
            self._pieces.append(torch.ops.quantized.linear_prepack_fp16(weight, bias))
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


class DenseLinear(nn.Module):
    """`input @ weight.T + bias` in the weights' own dtype.

    On a CPU in bfloat16 a lone row is computed as one of two: alone it takes another kernel, which
    adds up in another order, and one element rounded the other way changes every logit behind it.
    So a row is the same in any batch, at no cost: the weights are read once for both.

    Args:
        weight: `[out_features, in_features]`.
        bias: `[out_features]`, or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias)
        self._pairs = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies `[..., in_features]`; returns `[..., out_features]`."""
        if self._pairs and hidden.numel() == hidden.shape[-1]:
            pair = hidden.reshape(1, -1).repeat(2, 1)
            output = nn.functional.linear(pair, self.weight, self.bias)[0]
            return output.view(*hidden.shape[:-1], -1)
        return nn.functional.linear(hidden, self.weight, self.bias)


def load_linear(
    source: WeightSource,
    weights: Sequence[str],
    biases: Sequence[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> PackedLinear | DenseLinear:
    """Loads one matrix, or several that share their input, stacked along the output.

    Args:
        source: Where the weights are.
        weights: Names of the matrices.
        biases: Names of their biases; empty when there are none.
        dtype: Of the weights.
        device: Where they live.
    """
    if packs_float16(dtype, device):
        return PackedLinear(source, weights, biases)
    weight = source.load(*weights, dtype=dtype, device=device)
    bias = source.load(*biases, dtype=dtype, device=device) if biases else None
    return DenseLinear(weight, bias)
