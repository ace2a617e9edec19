"""Layers of experts: MLPs of which a router chooses some for each token.

Tokens are grouped by expert, so that the matrices of an expert are read once for all tokens of a
micro-batch, and only if one of them chose it.
"""

from collections.abc import Callable

import torch
from torch import nn

from stage_server.model.linear_format import Linear
from stage_server.model.weight_plan import (
    CheckpointTensor,
    ParameterSource,
    Shape,
    module_sources,
)
from stagecoach.model_files.family import ExpertLayout

GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""Names of the parameters of transformers' experts, which hold the matrices of all of them."""

BIAS = "_bias"
"""What follows in the names of their biases."""


class Experts(nn.Module):
    """The experts of a layer.

    Args:
        gate: Experts as transformers defines them, which say what is between the matrices. Their
            own parameters are dropped.
        gate_up: For each expert `[hidden_size] -> [2 * width]`: gate and up.
        down: For each expert `[width] -> [hidden_size]`.
        interleaves: Whether `gate` takes gate and up by turns, and `gate_up` has them one after
            another.
    """

    def __init__(
        self,
        gate: nn.Module,
        gate_up: list[Linear],
        down: list[Linear],
        *,
        interleaves: bool = False,
    ) -> None:
        super().__init__()
        for name in (GATE_UP, DOWN, GATE_UP + BIAS, DOWN + BIAS):
            if hasattr(gate, name):
                delattr(gate, name)
        self._gate = gate
        self._activated: Callable[[torch.Tensor], torch.Tensor] = gate._apply_gate  # type: ignore[assignment]
        self._interleaves = interleaves
        self._gate_up = nn.ModuleList(gate_up)
        self._down = nn.ModuleList(down)

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Adds up what the chosen experts make of each token.

        Args:
            hidden: `[num_tokens, hidden_size]`.
            chosen: int64 `[num_tokens, num_chosen]`: experts of each token.
            weights: `[num_tokens, num_chosen]`: shares of those experts.

        Returns:
            `[num_tokens, hidden_size]`.
        """
        by_expert = chosen.reshape(-1).argsort(stable=True)
        tokens = by_expert // chosen.shape[1]
        ordered = hidden[tokens]  # [num_tokens * num_chosen, hidden_size]
        made = torch.empty_like(ordered)
        counts = chosen.reshape(-1).bincount(minlength=len(self._down)).tolist()
        end = 0
        for expert, count in enumerate(counts):
            if count:
                start, end = end, end + count
                gate_up = self._gate_up[expert](ordered[start:end])  # [count, 2 * width]
                if self._interleaves:
                    gate_up = gate_up.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
                made[start:end] = self._down[expert](self._activated(gate_up))
        made *= weights.reshape(-1)[by_expert].unsqueeze(1)
        return torch.zeros_like(hidden).index_add_(0, tokens, made)


def are_experts(module: nn.Module) -> bool:
    """Whether a module of transformers is the experts of a layer."""
    return all(getattr(module, name, None) is not None for name in (GATE_UP, DOWN, "_apply_gate"))


def takes_turns(experts: nn.Module) -> bool:
    """Whether experts of transformers take gate and up by turns, and not one after another."""
    return not getattr(experts, "is_concatenated", True)


def router_paths(layer: nn.Module) -> set[str]:
    """Returns the names of the linear layers, beside experts, that choose or weigh what is used."""
    found = set()
    for path, module in layer.named_modules():
        if not are_experts(module):
            continue
        block, num_experts = path.rpartition(".")[0], getattr(module, GATE_UP).shape[0]
        for name, child in layer.get_submodule(block).named_modules(prefix=block):
            if isinstance(child, nn.Linear) and child.out_features in (1, num_experts):
                found.add(name)
    return found


def layer_sources(
    layer: nn.Module, prefix: str, names: ExpertLayout | None
) -> dict[str, ParameterSource]:
    """Plans a decoder layer as transformers defines it.

    Args:
        layer: May be on the meta device.
        prefix: Before the names of its tensors.
        names: How the checkpoint names experts; None: the family has none.

    Returns:
        What the parameters are made of, by their names in transformers.
    """
    sources = module_sources(layer, prefix)
    if names is None:
        return sources
    for path, module in layer.named_modules():
        if are_experts(module):
            num_rows = {GATE_UP: 0, DOWN: 0}
            for name, parts in ((GATE_UP, names.gate_up), (DOWN, (names.down,))):
                shape = tuple(getattr(module, name).shape)
                if getattr(module, "is_transposed", False):
                    shape = (shape[0], shape[2], shape[1])
                num_rows[name] = shape[1]
                sources[f"{prefix}{path}.{name}"] = _sources(shape, parts, names, prefix)
            for name, biases in ((GATE_UP, names.gate_up_bias), (DOWN, names.down_bias)):
                if biases:
                    sources[f"{prefix}{path}.{name}{BIAS}"] = _bias_sources(
                        shape[0], num_rows[name], biases, prefix
                    )
    for name, in_files in names.others.items():
        if (source := sources.get(prefix + name)) is not None:
            sources[prefix + name] = ParameterSource.one(prefix + in_files, source.shape)
    return sources


def _sources(
    shape: Shape, parts: tuple[str, ...], names: ExpertLayout, prefix: str
) -> ParameterSource:
    """Plans a parameter of all experts, by the names of its parts in the checkpoint."""
    num_experts, num_rows, num_columns = shape

    def of_expert(expert: int) -> ParameterSource:
        if "{}" in parts[0]:
            part_shape = (num_rows // len(parts), num_columns)
            return ParameterSource.rows(
                ParameterSource.one(prefix + part.format(expert), part_shape) for part in parts
            )
        [part] = parts
        file_shape = shape
        if names.are_transposed:
            file_shape = (num_experts, num_columns, num_rows)
        return ParameterSource(
            (CheckpointTensor(prefix + part, file_shape, expert, names.are_transposed),)
        )

    return ParameterSource.experts([of_expert(expert) for expert in range(num_experts)])


def _bias_sources(
    num_experts: int, num_rows: int, parts: tuple[str, ...], prefix: str
) -> ParameterSource:
    """Plans the biases of all experts, by the names of their parts in the checkpoint."""
    file_shape = num_experts, num_rows // len(parts)
    return ParameterSource.experts(
        [
            ParameterSource(
                tuple(CheckpointTensor(prefix + part, file_shape, expert) for part in parts)
            )
            for expert in range(num_experts)
        ]
    )
