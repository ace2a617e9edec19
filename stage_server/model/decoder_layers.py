"""Runs decoder layers with transformers' own modules: the way that serves every family."""

from collections.abc import Sequence

import torch
from torch import nn

from stage_server.model.attention import Attention
from stage_server.model.blueprint import Blueprint, layer_prefix
from stage_server.model.decoder_layer import run_layer
from stage_server.model.linear import load_linear, packs_float16
from stage_server.model.weights import WeightSource


class DecoderLayers:
    """A stage's layers, as transformers defines them.

    Args:
        blueprint: Their modules without memory; they are given memory and kept.
        source: Where the weights are.
        dtype: Of the weights.
        device: Where they live.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._layers = blueprint.layers
        self._first_layer = blueprint.range.start
        self._rotary = blueprint.rotary
        self._rotary.to(device)
        for layer_idx, layer in zip(blueprint.range, self._layers, strict=True):
            load_module(layer, source.within(layer_prefix(layer_idx)), dtype=dtype, device=device)

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


def load_module(
    module: nn.Module, source: WeightSource, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Gives a module on the meta device its weights; every matrix in its fastest form.

    What is no matrix is kept in float32 where matrices are packed float16, because that is what
    they compute in.
    """
    vector_dtype = torch.float32 if packs_float16(dtype, device) else dtype
    for path, child in list(module.named_modules()):
        prefix = f"{path}." if path else ""
        if isinstance(child, nn.Linear):
            biases = [f"{prefix}bias"] if child.bias is not None else []
            linear = load_linear(source, [f"{prefix}weight"], biases, dtype=dtype, device=device)
            module.set_submodule(path, linear)
            continue
        for name in dict(child.named_parameters(recurse=False)):
            loaded = source.load(f"{prefix}{name}", dtype=vector_dtype, device=device)
            setattr(child, name, nn.Parameter(loaded, requires_grad=False))
    module.eval()
    on_meta = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not on_meta, f"a served family has buffers that nothing fills: {on_meta}"
