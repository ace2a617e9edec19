"""Lean layers on CUDA: between the matrices run kernels of ours, five launches a layer.

A layer hands its last residual on, so that the next one's norm adds it in the same pass.
`LeanLayers` is the slow twin that the tests compare with.
"""

from collections.abc import Sequence

import torch

from stage_server.kernels.kernels import add_rms_norm, silu_and_mul
from stage_server.model.attention import Attention, FusedAttention
from stage_server.model.lean_layers import LeanLayer, LeanLayers
from stage_server.model.rotary import RotaryRows


class FusedLayer(LeanLayer):
    """A decoder layer whose norms, residuals and rotations are kernels of this project."""

    def advance(
        self,
        hidden: torch.Tensor,
        update: torch.Tensor | None,
        rotary: RotaryRows,
        attention: FusedAttention,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the layer, but for its last residual.

        Args:
            hidden: `[num_tokens, hidden_size]`.
            update: What the layer before has left to add; None: nothing.
            rotary: Cosines and sines of the rows.
            attention: Attention of the micro-batch.

        Returns:
            Hidden states and what is left to add to them, `[num_tokens, hidden_size]` each.
        """
        traits = self._traits
        if update is None:
            normed = self._attention_norm(hidden)
        else:
            hidden, normed = self._add_and_norm(hidden, update, self._attention_norm.weight)
        # [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values.
        heads = self._qkv(normed).view(hidden.shape[0], -1, traits.head_dim)
        attended = attention.rotate_and_attend(  # [num_tokens, num_heads, head_dim]
            self._index,
            heads,
            rotary.cos,
            rotary.swapped_sin,
            head_norm=self._head_norm,
            eps=self._eps,
            scaling=traits.scaling,
            sliding_window=traits.sliding_window,
        )
        del heads
        update = self._output(attended.view(hidden.shape[0], -1))  # [num_tokens, hidden_size]
        del attended
        hidden, normed = self._add_and_norm(hidden, update, self._mlp_norm.weight)
        del update  # what lives on beside the MLP's tensors would raise the peak
        gate_up = self._gate_up(normed)  # [num_tokens, 2 * intermediate_size]
        del normed
        gated = silu_and_mul(gate_up)  # [num_tokens, intermediate_size]
        del gate_up
        return hidden, self._down(gated)

    def _add_and_norm(
        self, hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm(hidden, update, weight, scale=self._residual_scale, eps=self._eps)


class FusedLayers(LeanLayers):
    """A stage's layers, of a Llama-like family, on a device that has kernels."""

    layer_type = FusedLayer
    _layers: Sequence[FusedLayer]

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        num_positions: int,
        attention: Attention,
    ) -> torch.Tensor:
        """Runs all layers; see `Layers.forward`."""
        assert isinstance(attention, FusedAttention), "the engine has kernels for both or neither"
        rows = self._rotary.at(hidden, positions, num_positions)[0]
        update = None
        for layer in self._layers:
            hidden, update = layer.advance(hidden, update, rows, attention)
        assert update is not None, "a stage has a layer"
        return torch.add(hidden, update, alpha=self._residual_scale)
