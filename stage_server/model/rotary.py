"""Rotary position embeddings of a stage, computed once a step for all its layers.

The frequencies (arXiv:2104.09864, and the scalings of Llama 3, YaRN and others) are transformers'.
Two kinds of scaling there depend on the longest sequence of the batch; both are constant up to
`ModelConfig.max_model_len`, so here a row depends on nothing but its own position.
"""

from collections.abc import Sequence

import torch
from torch import nn

CosSin = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, `[1, num_tokens, rotary_dim]` each."""


class Rotary:
    """Cosines and sines of positions, for every layer of a stage.

    Args:
        module: transformers' rotary embedding; its buffers are not on the meta device.
        layer_types: Type of each local layer when each type has an embedding of its own; None:
            all layers share one.
        num_layers: Local layers.
    """

    def __init__(
        self, module: nn.Module, layer_types: Sequence[str] | None, num_layers: int
    ) -> None:
        """Keeps the module."""
        self._module = module
        self._layer_types = layer_types
        self._num_layers = num_layers

    def to(self, device: torch.device) -> None:
        """Moves the frequencies."""
        self._module.to(device)

    def at(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> Sequence[CosSin]:
        """Computes the embeddings of one step.

        Args:
            hidden: Gives dtype and device.
            position_ids: int64 `[1, num_tokens]`.

        Returns:
            One pair a local layer; layers that share an embedding share the tensors.
        """
        if self._layer_types is None:
            return [self._module(hidden, position_ids)] * self._num_layers
        pairs = {
            layer_type: self._module(hidden, position_ids, layer_type)
            for layer_type in set(self._layer_types)
        }
        return [pairs[layer_type] for layer_type in self._layer_types]
