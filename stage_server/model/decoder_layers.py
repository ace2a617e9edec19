"""Runs decoder layers with transformers' own modules: the way that serves every family."""

from collections.abc import Sequence

import torch
from torch import nn

from stage_server.model.attention import Attention
from stage_server.model.blueprint import Blueprint, layer_prefix
from stage_server.model.decoder_layer import run_layer
from stage_server.model.module_blueprint import ModuleBlueprint
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource


class DecoderLayers:
    """A stage's layers, as transformers defines them.

    Args:
        blueprint: Their modules without memory; they are given memory and kept.
        loader: Loader of the layers' weights.
    """

    def __init__(self, blueprint: Blueprint, loader: WeightLoader) -> None:
        assert isinstance(blueprint, ModuleBlueprint), "only it has modules"
        self._layers = blueprint.layers
        self._first_layer = blueprint.range.start
        self._rotary = blueprint.rotary
        self._rotary.to(loader.device)
        for layer_idx, layer in zip(blueprint.range, self._layers, strict=True):
            loader.within(layer_prefix(layer_idx)).fill(layer)

    @staticmethod
    def weight_sources(blueprint: Blueprint) -> dict[str, ParameterSource]:
        """Plans the weights: each is a tensor of the same name."""
        return {
            name: source
            for sources in blueprint.layer_sources()
            for name, source in sources.items()
        }

    @property
    def modules(self) -> Sequence[nn.Module]:
        """All that holds weights."""
        return self._layers

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        num_positions: int,
        attention: Attention,
    ) -> torch.Tensor:
        """Runs all layers; see `Layers.forward`."""
        embeddings = self._rotary.at(hidden, positions, num_positions)
        hidden, position_ids = hidden.unsqueeze(0), positions.unsqueeze(0)
        for layer, rows in zip(self._layers, embeddings, strict=True):
            hidden = run_layer(
                layer, hidden, position_ids, rows.cos_sin, attention, self._first_layer
            )
        return hidden[0]
