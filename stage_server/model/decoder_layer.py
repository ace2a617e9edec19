"""How a decoder layer of transformers is called, and how it calls our attention.

Its modules reach the `Attention` through an attention function that is registered once, under
`IMPLEMENTATION`.
"""

import torch
from torch import nn
from transformers import AttentionInterface

from stage_server.model.attention import Attention
from stage_server.model.latent_attention import latent_heads
from stage_server.model.rotary import CosSin

IMPLEMENTATION = "stagecoach"
"""`_attn_implementation` of the configurations of our layers."""

_HANDED = ("attention", "first_layer")
"""Arguments of a layer that are its attention's."""

_OF_MODULE = -1
"""No window that a layer can have."""


def run_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    position_ids: torch.Tensor,
    cos_sin: CosSin,
    attention: Attention,
    first_layer: int,
) -> torch.Tensor:
    """Calls a decoder layer of transformers.

    Args:
        layer: The layer.
        hidden: `[1, num_tokens, hidden_size]`.
        position_ids: int64 `[1, num_tokens]`.
        cos_sin: Rotary embedding of the positions.
        attention: Passed on to `attend_from_transformers`.
        first_layer: Global index of the stage's first layer.

    Returns:
        `[1, num_tokens, hidden_size]`.
    """
    output = layer(
        hidden,
        attention_mask=None,
        position_ids=position_ids,
        past_key_values=None,
        use_cache=False,
        position_embeddings=cos_sin,
        attention=attention,
        first_layer=first_layer,
    )
    assert isinstance(output, torch.Tensor), "layers of the pinned transformers return a tensor"
    return output


def hand_arguments_on(layer: nn.Module) -> None:
    """Makes a layer hand what `run_layer` passes on to its attention, where it does not by itself.

    Args:
        layer: The layer; of its modules, the attention alone knows its `layer_idx`.
    """
    [attention] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
    handed: dict[str, object] = {}

    def keep(_: nn.Module, args: tuple[object, ...], given: dict[str, object]) -> None:
        handed.update({name: given[name] for name in _HANDED})

    def add(
        _: nn.Module, args: tuple[object, ...], given: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        given = {**given, **handed}
        handed.clear()  # what a micro-batch has lives no longer than its step
        return args, given

    layer.register_forward_pre_hook(keep, with_kwargs=True)
    attention.register_forward_pre_hook(add, with_kwargs=True)


def attend_from_transformers(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attention: Attention,
    first_layer: int,
    scaling: float,
    sliding_window: int | None = _OF_MODULE,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Implements the signature that transformers' attention modules call.

    Args:
        module: The attention module; has its global `layer_idx`.
        query: `[1, num_heads, num_tokens, head_dim]`.
        key: `[1, num_kv_heads, num_tokens, head_dim]`.
        value: As `key`.
        attention_mask: None: the attention makes its own.
        attention: Passed through the decoder layer.
        first_layer: Global index of the stage's first layer, passed likewise.
        scaling: As in `Attention.attend`.
        sliding_window: As in `Attention.attend`. Families that leave it to masks pass nothing, and
            their modules say it.
        softcap: As in `Attention.attend`.
        s_aux: As `sinks` in `Attention.attend`.
        **_: What concerns training and other implementations.

    Returns:
        `[1, num_tokens, num_heads, head_dim]`, and no weights.
    """
    assert attention_mask is None, "the attention makes its own masks"
    if sliding_window == _OF_MODULE:
        sliding_window = getattr(module, "sliding_window", None)
    layer_idx = module.layer_idx
    assert isinstance(layer_idx, int), "every attention module knows its layer"
    latent = latent_heads(module)
    if latent is not None:
        query = latent.absorbed(query)
    output = attention.attend(
        layer_idx - first_layer,
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    if latent is not None:
        output = latent.expanded(output)
    return output.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, attend_from_transformers)
