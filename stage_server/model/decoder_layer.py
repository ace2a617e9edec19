"""How a decoder layer of transformers is called."""

import torch
from torch import nn

from stage_server.model.attention import Attention
from stage_server.model.rotary import CosSin


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
        attention: Passed on to `attention.attend_from_transformers`.
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
