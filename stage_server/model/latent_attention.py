"""Multi-head latent attention over compressed rows (DeepSeek-V2, arXiv:2405.04434).

Keys and values of all heads are products of one row a token with `kv_b_proj`. The row is kept, and
nothing else. A query is multiplied by the key part of that matrix instead of every key, and what is
attended is multiplied by the value part instead of every value, which is the same sum in another
order: so to the attention a layer has one head of keys, whose values are its own rows.
"""

import torch
from torch import nn

from stagecoach.model_files.latent_sizes import LatentSizes

_ATTENTION = "self_attn"
_EXPANDING = "kv_b_proj"


class LatentHeads:
    """What a layer's attention does to queries before, and to what was attended after.

    Args:
        attention: The attention module of transformers, whose `kv_b_proj` stays in plain numbers.
        sizes: Its sizes.
    """

    def __init__(self, attention: nn.Module, sizes: LatentSizes) -> None:
        self._attention = attention
        self._sizes = sizes

    def absorbed(self, query: torch.Tensor) -> torch.Tensor:
        """Turns queries `[1, num_heads, num_tokens, query_dim]` into `[..., row]`."""
        sizes = self._sizes
        plain, rotated = query[..., : sizes.nope_dim], query[..., sizes.nope_dim :]
        keys = self._by_head[:, : sizes.nope_dim]  # [num_heads, nope_dim, kv_rank]
        return torch.cat((plain @ keys, rotated), dim=-1)

    def expanded(self, attended: torch.Tensor) -> torch.Tensor:
        """Turns what was attended, `[num_tokens, num_heads, row]`, into `[..., value_dim]`."""
        sizes = self._sizes
        values = self._by_head[:, sizes.nope_dim :]  # [num_heads, value_dim, kv_rank]
        rows = attended[..., : sizes.kv_rank].transpose(0, 1)
        return (rows @ values.transpose(1, 2)).transpose(0, 1)

    @property
    def _by_head(self) -> torch.Tensor:
        """`[num_heads, nope_dim + value_dim, kv_rank]`."""
        weight = self._attention.get_parameter(f"{_EXPANDING}.weight")
        sizes = self._sizes
        return weight.view(-1, sizes.nope_dim + sizes.value_dim, sizes.kv_rank)


def keep_rows(layer: nn.Module, sizes: LatentSizes) -> None:
    """Makes a decoder layer of transformers attend to compressed rows.

    Args:
        layer: The layer, which may be on the meta device.
        sizes: Sizes of its attention.
    """
    attention = layer.get_submodule(_ATTENTION)
    assert callable(attention.expand_kv), "this transformers expands rows in a method"
    attention.expand_kv = _rows
    attention.latent_heads = LatentHeads(attention, sizes)


def latent_heads(attention: nn.Module) -> LatentHeads | None:
    """Returns what `keep_rows` gave an attention module; None: it is an ordinary one."""
    found = getattr(attention, "latent_heads", None)
    assert found is None or isinstance(found, LatentHeads)
    return found


def expanding_paths(layer: nn.Module) -> set[str]:
    """Returns the names of the linear layers that stay in plain numbers: they are taken apart."""
    return {
        f"{path}.{_EXPANDING}".removeprefix(".")
        for path, module in layer.named_modules()
        if latent_heads(module) is not None
    }


def _rows(compressed: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins `[1, 1, num_tokens, kv_rank]` and `[..., rope_dim]`: keys, and values that are they."""
    rows = torch.cat((compressed, rotated), dim=-1)
    return rows, rows
