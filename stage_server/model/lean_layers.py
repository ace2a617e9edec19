"""Llama-like decoder layers written out: the same arithmetic with fewer and larger operations.

transformers' layer costs about twice the Python and dispatch, which on small models is most of a
step. Here query, key and value are one matrix, and so are gate and up; queries and keys are
normed and rotated together. `decoder_layers` is the slow twin that the tests compare with.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from stage_server.model.attention import Attention
from stage_server.model.blueprint import AttentionTraits, Blueprint, layer_prefix
from stage_server.model.rms_norm import RmsNorm
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource, stack_linears

_QKV, _GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"
_STACKED = {
    _QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    _GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
}
"""Linear layers that are one matrix here, and several in files."""

_LINEARS = (
    "self_attn.o_proj",
    "mlp.down_proj",
    *(part for parts in _STACKED.values() for part in parts),
)
_NAMES = {f"{name}.{kind}" for kind in ("weight", "bias") for name in _LINEARS} | {
    "input_layernorm.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "post_attention_layernorm.weight",
}


def is_lean(blueprint: Blueprint) -> bool:
    """Returns whether `LeanLayers` computes what the blueprint's layers do."""
    return (
        blueprint.family.lean is not None
        and blueprint.hidden_act == "silu"
        and all(traits.softcap is None for traits in blueprint.traits)
        and all(
            name.removeprefix(layer_prefix(layer_idx)) in _NAMES
            for layer_idx, sources in zip(blueprint.range, blueprint.layer_sources(), strict=True)
            for name in sources
        )
    )


class LeanLayer(nn.Module):
    """A Llama-like decoder layer, with its queries, keys and values in one matrix."""

    _head_norm: torch.Tensor | None

    def __init__(
        self,
        index: int,
        traits: AttentionTraits,
        eps: float,
        residual_scale: float,
        loader: WeightLoader,
    ) -> None:
        super().__init__()
        self._index = index
        self._traits = traits
        self._eps = eps
        self._residual_scale = residual_scale
        num_rows, _ = loader.source.shape(f"{_QKV}.weight")
        self._num_rotated = num_rows // traits.head_dim - traits.num_kv_heads
        self._num_heads = self._num_rotated - traits.num_kv_heads
        self._qkv = loader.linear(_QKV)
        self._output = loader.linear("self_attn.o_proj")
        self._gate_up = loader.linear(_GATE_UP)
        self._down = loader.linear("mlp.down_proj")
        self._attention_norm = RmsNorm(loader.other("input_layernorm.weight"), eps)
        self._mlp_norm = RmsNorm(loader.other("post_attention_layernorm.weight"), eps)
        head_norm = None
        if "self_attn.q_norm.weight" in loader.source:
            # One row a head: first the queries', then the keys'.
            query = loader.other("self_attn.q_norm.weight").expand(self._num_heads, -1)
            key = loader.other("self_attn.k_norm.weight").expand(traits.num_kv_heads, -1)
            head_norm = torch.cat((query, key))  # [num_heads + num_kv_heads, head_dim]
        self.register_buffer("_head_norm", head_norm)

    def forward(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        swapped_sin: torch.Tensor,
        attention: Attention,
    ) -> torch.Tensor:
        """`[num_tokens, hidden_size]` -> the same; `[num_tokens, 1, head_dim]` of the rotary."""
        traits = self._traits
        # [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values.
        heads = self._qkv(self._attention_norm(hidden)).view(hidden.shape[0], -1, traits.head_dim)
        rotated = heads[:, : self._num_rotated]  # [num_tokens, num_heads + num_kv_heads, head_dim]
        if self._head_norm is not None:
            rotated = functional.rms_norm(rotated, (traits.head_dim,), None, self._eps)
            rotated = rotated * self._head_norm
        rotated = torch.addcmul(rotated * cos, rotated.roll(traits.head_dim // 2, -1), swapped_sin)
        attended = attention.attend(  # [num_tokens, num_heads, head_dim]
            self._index,
            rotated[:, : self._num_heads],  # queries [num_tokens, num_heads, head_dim]
            rotated[:, self._num_heads :],  # keys [num_tokens, num_kv_heads, head_dim]
            heads[:, self._num_rotated :],  # values, as the keys
            scaling=traits.scaling,
            sliding_window=traits.sliding_window,
            softcap=None,
        )
        del heads, rotated  # what lives on beside the MLP's tensors would raise the peak
        attended = self._output(attended.reshape(hidden.shape[0], -1))  # [num_tokens, hidden_size]
        hidden = torch.add(hidden, attended, alpha=self._residual_scale)
        del attended
        # Both [num_tokens, intermediate_size].
        gate, up = self._gate_up(self._mlp_norm(hidden)).chunk(2, dim=-1)
        return torch.add(
            hidden, self._down(functional.silu(gate).mul_(up)), alpha=self._residual_scale
        )


class LeanLayers:
    """A stage's layers, of a Llama-like family.

    Args:
        blueprint: What they are; `is_lean` of it.
        loader: Loader of the layers' weights.
    """

    layer_type: type[LeanLayer] = LeanLayer
    """How one layer is run."""
    _layers: Sequence[LeanLayer]

    def __init__(self, blueprint: Blueprint, loader: WeightLoader) -> None:
        self._rotary = blueprint.rotary
        self._rotary.to(loader.device)
        self._residual_scale = residual_scale(blueprint)
        self._layers = [
            self.layer_type(
                index,
                blueprint.traits[index],
                blueprint.norm_eps,
                self._residual_scale,
                loader.within(layer_prefix(layer_idx)),
            )
            for index, layer_idx in enumerate(blueprint.range)
        ]

    @staticmethod
    def weight_sources(blueprint: Blueprint) -> dict[str, ParameterSource]:
        """Plans the weights: query, key and value are one matrix, and so are gate and up."""
        sources: dict[str, ParameterSource] = {}
        for layer_idx, of_layer in zip(blueprint.range, blueprint.layer_sources(), strict=True):
            prefix = layer_prefix(layer_idx)
            for stacked, parts in _STACKED.items():
                stack_linears(of_layer, prefix + stacked, [prefix + part for part in parts])
            sources |= of_layer
        return sources

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
        rows = self._rotary.at(hidden, positions, num_positions)[0]
        # Both [num_tokens, 1, head_dim].
        cos, swapped_sin = rows.cos.unsqueeze(1), rows.swapped_sin.unsqueeze(1)
        for layer in self._layers:
            hidden = layer(hidden, cos, swapped_sin, attention)
        return hidden


def residual_scale(blueprint: Blueprint) -> float:
    """Returns the factor on what a layer adds to its hidden states."""
    return blueprint.family.residual_scale(blueprint.config.raw)
