"""Llama-like decoder layers written out: the same arithmetic with fewer and larger operations.

transformers' layer costs about twice the Python and dispatch, which on small models is most of a
step. Here query, key and value are one matrix, and so are gate and up; queries and keys are
normed and rotated together. `decoder_layers` is the slow twin that the tests compare with.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from stage_server.model.attention import Attention
from stage_server.model.blueprint import AttentionTraits, Blueprint, layer_prefix
from stage_server.model.linear import load_linear, packs_float16
from stage_server.model.rms_norm import RmsNorm
from stage_server.model.weights import WeightSource

_MATRICES = frozenset(
    f"{name}.{kind}"
    for kind in ("weight", "bias")
    for name in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
)
_NAMES = _MATRICES | {
    "input_layernorm.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "post_attention_layernorm.weight",
}


def is_lean(blueprint: Blueprint) -> bool:
    """Returns whether `LeanLayers` computes what the blueprint's layers do."""
    return (
        blueprint.family.lean
        and blueprint.hf_config.hidden_act == "silu"
        and all(traits.softcap is None for traits in blueprint.traits)
        and all(layer.state_dict().keys() <= _NAMES for layer in blueprint.layers)
    )


class LeanLayers:
    """A stage's layers, of a Llama-like family.

    Args:
        blueprint: What they are; `is_lean` of it.
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
        self._rotary = blueprint.rotary
        self._rotary.to(device)
        self._layers = [
            _LeanLayer(
                index,
                layer.state_dict(),
                blueprint.traits[index],
                blueprint.hf_config.rms_norm_eps,
                blueprint.family.residual_scale(blueprint.config.raw),
                source.within(layer_prefix(layer_idx)),
                dtype=dtype,
                device=device,
            )
            for index, (layer_idx, layer) in enumerate(
                zip(blueprint.range, blueprint.layers, strict=True)
            )
        ]

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


class _LeanLayer(nn.Module):
    """One layer; `tensors` are those of transformers' module on the meta device."""

    _head_norm: torch.Tensor | None

    def __init__(
        self,
        index: int,
        tensors: Mapping[str, torch.Tensor],
        traits: AttentionTraits,
        eps: float,
        residual_scale: float,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._index = index
        self._traits = traits
        self._eps = eps
        self._residual_scale = residual_scale
        num_query_rows = tensors["self_attn.q_proj.weight"].shape[0]
        self._num_heads = num_query_rows // traits.head_dim
        self._num_rotated = self._num_heads + traits.num_kv_heads
        vector_dtype = torch.float32 if packs_float16(dtype, device) else dtype

        def vector(name: str) -> torch.Tensor:
            return source.load(f"{name}.weight", dtype=vector_dtype, device=device)

        def linear(*names: str) -> nn.Module:
            biases = [f"{name}.bias" for name in names if f"{name}.bias" in tensors]
            assert len(biases) in (0, len(names)), "stacked matrices have biases alike"
            weights = [f"{name}.weight" for name in names]
            return load_linear(source, weights, biases, dtype=dtype, device=device)

        self._qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self._output = linear("self_attn.o_proj")
        self._gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self._down = linear("mlp.down_proj")
        self._attention_norm = RmsNorm(vector("input_layernorm"), eps)
        self._mlp_norm = RmsNorm(vector("post_attention_layernorm"), eps)
        head_norm = None
        if "self_attn.q_norm.weight" in tensors:
            # One row a head: first the queries', then the keys'.
            query = vector("self_attn.q_norm").expand(self._num_heads, -1)  # [num_heads, head_dim]
            key = vector("self_attn.k_norm").expand(traits.num_kv_heads, -1)
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
        attended = self._output(attended.reshape(hidden.shape[0], -1))  # [num_tokens, hidden_size]
        hidden = torch.add(hidden, attended, alpha=self._residual_scale)
        # Both [num_tokens, intermediate_size].
        gate, up = self._gate_up(self._mlp_norm(hidden)).chunk(2, dim=-1)
        return torch.add(
            hidden, self._down(functional.silu(gate).mul_(up)), alpha=self._residual_scale
        )
