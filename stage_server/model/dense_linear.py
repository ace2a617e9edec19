"""Matrices in the dtype that is computed in, as torch multiplies them."""

from typing import Self

import torch
from torch import nn

from stage_server.core.torch_dtypes import torch_dtype
from stage_server.model.embeddings import Embedding, PlainEmbedding
from stage_server.model.linear_format import Linear
from stage_server.model.weights import WeightSource
from stagecoach.contract.precision import DType, Precision


class DenseFormat:
    """Implements `LinearFormat` for weights in the compute dtype.

    Args:
        dtype: Dtype of weights and activations.
        device: Where the weights live.
    """

    def __init__(self, dtype: DType, device: torch.device) -> None:
        self._dtype = torch_dtype(dtype)
        self._device = device

    @classmethod
    def of(cls, precision: Precision, device: torch.device) -> Self | None:
        """Returns the format; None where weights have another one than activations."""
        if precision.weights.dtype != precision.compute:
            return None
        return cls(precision.compute, device)

    def load(self, source: WeightSource, weight: str, bias: str | None) -> "DenseLinear":
        """Loads a matrix into a tensor of its own."""
        matrix = self._tensor(source, weight)
        return DenseLinear(matrix, None if bias is None else self._tensor(source, bias))

    def _tensor(self, source: WeightSource, name: str) -> torch.Tensor:
        return source.load(name, self._dtype, self._device)

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding into a tensor of its own."""
        return PlainEmbedding(self._tensor(source, weight))

    def sharing(self, embedding: Embedding) -> "DenseLinear":
        """Uses the same tensor."""
        assert isinstance(embedding, PlainEmbedding), "it is of this format"
        return DenseLinear(embedding.weight, None)


class DenseLinear(Linear):
    """A linear layer of a tensor.

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
