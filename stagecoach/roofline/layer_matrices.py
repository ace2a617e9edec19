"""The matrices of a model's layers: how large they are, and by which a token is multiplied."""

import math
from collections.abc import Iterable
from typing import NamedTuple, Self

from stagecoach.contract.precision import Encoding
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.latent_sizes import LatentSizes

Matrix = tuple[int, int]
"""Rows and columns, as it is multiplied: rows are outputs."""


class LayerMatrices(NamedTuple):
    """The matrices of a layer."""

    common: tuple[Matrix, ...]
    """Matrices by which every token is multiplied."""
    of_expert: tuple[Matrix, ...] = ()
    """Matrices of one expert; empty: the layer has no experts."""
    num_experts: int = 0

    def num_bytes(self, encoding: Encoding) -> int:
        """Bytes of all matrices, each in an encoding."""
        of_expert = sum(encoding.matrix_bytes(*shape) for shape in self.of_expert)
        common = sum(encoding.matrix_bytes(*shape) for shape in self.common)
        return common + self.num_experts * of_expert

    def weights(self, num_bytes: int) -> "LayerWeights":
        """Sums them up.

        Args:
            num_bytes: Bytes of all, as they are kept.
        """
        of_experts = self.num_experts * _parameters(self.of_expert)
        parameters = _parameters(self.common) + of_experts
        return LayerWeights(parameters, num_bytes, of_experts, num_bytes * of_experts // parameters)


class LayerWeights(NamedTuple):
    """All matrices of a layer, or of several, together."""

    parameters: int
    num_bytes: int
    """Bytes as they are kept."""
    expert_parameters: int
    """Parameters that belong to experts, to all of them."""
    expert_bytes: int
    """Bytes of those."""

    @classmethod
    def sum(cls, layers: Iterable[Self]) -> Self:
        """Adds up layers, at least one."""
        return cls(*map(sum, zip(*layers, strict=True)))

    def of_share(self, share: float) -> Self:
        """What is left of a share of the experts, and of all else."""
        left_out = 1 - share
        parameters = round(self.expert_parameters * left_out)
        num_bytes = round(self.expert_bytes * left_out)
        return self._replace(
            parameters=self.parameters - parameters,
            num_bytes=self.num_bytes - num_bytes,
            expert_parameters=self.expert_parameters - parameters,
            expert_bytes=self.expert_bytes - num_bytes,
        )


def layer_matrices(config: ModelConfig, *, are_joined: bool) -> tuple[LayerMatrices, ...]:
    """Returns the matrices of each layer.

    Args:
        config: The model; it says how wide an MLP is.
        are_joined: Whether those that have one input are one, as lean layers have them.
    """
    experts = config.experts
    dense = LayerMatrices(_common(config, config.intermediate_size, are_joined))
    if experts is None:
        return config.num_layers * (dense,)
    with_experts = LayerMatrices(
        _common(config, experts.shared_width, are_joined),
        ((2 * experts.width, config.hidden_size), (config.hidden_size, experts.width)),
        experts.num_experts,
    )
    return tuple(with_experts if has_experts else dense for has_experts in experts.layers)


def _common(config: ModelConfig, width: int | None, are_joined: bool) -> tuple[Matrix, ...]:
    hidden_size = config.hidden_size
    of_mlp = [width] * (config.num_mlp_matrices - 1) if width else []
    if are_joined:
        of_mlp = [sum(of_mlp)]
    return (
        *_of_attention(config, are_joined),
        *((rows, hidden_size) for rows in of_mlp),
        *([(hidden_size, width)] if width else []),
    )


def _of_attention(config: ModelConfig, are_joined: bool) -> tuple[Matrix, ...]:
    if config.latent is not None:
        return _latent(config, config.latent)
    hidden_size = config.hidden_size
    attention_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    of_attention = [attention_width, kv_width, kv_width]
    family = FAMILIES.get(config.model_type)
    if family is not None and family.gates_attention:
        of_attention.append(attention_width)
    if are_joined:
        of_attention = [sum(of_attention)]
    return (
        *((rows, hidden_size) for rows in of_attention),
        (hidden_size, attention_width),
    )


def _latent(config: ModelConfig, sizes: LatentSizes) -> tuple[Matrix, ...]:
    """The matrices of latent attention."""
    hidden_size, num_heads = config.hidden_size, config.num_attention_heads
    queries = num_heads * sizes.query_dim
    of_queries: tuple[Matrix, ...] = ((queries, hidden_size),)
    if sizes.query_rank is not None:
        of_queries = ((sizes.query_rank, hidden_size), (queries, sizes.query_rank))
    return (
        *of_queries,
        (sizes.row, hidden_size),
        (num_heads * (sizes.nope_dim + sizes.value_dim), sizes.kv_rank),
        (hidden_size, num_heads * sizes.value_dim),
    )


def _parameters(matrices: tuple[Matrix, ...]) -> int:
    return sum(map(math.prod, matrices))
