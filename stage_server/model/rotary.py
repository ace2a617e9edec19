"""Rotary position embeddings of a stage, computed once a step for all its layers.

The frequencies (arXiv:2104.09864, and the scalings of Llama 3, YaRN and others) are transformers'.
Two kinds of scaling there depend on the longest sequence in the batch; both are constant up to
`ModelConfig.max_model_len`, so here a row depends on nothing but its own position.
"""

from collections.abc import Sequence

import torch
from torch import nn


class Rotary:
    """Cosines and sines by position.

    Args:
        module: transformers' rotary embedding, on the CPU.
        layer_types: Type of each local layer when each type has its own embedding; None: all
            layers share one.
    """

    def __init__(self, module: nn.Module, layer_types: Sequence[str] | None) -> None:
        """Takes the frequencies out of the module."""
        self._layer_types = layer_types
        self._module = module
