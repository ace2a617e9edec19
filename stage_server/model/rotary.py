"""Rotary position embeddings of a stage, computed once a position and looked up ever after.

The frequencies (arXiv:2104.09864, and the scalings of Llama 3, YaRN and others) are transformers'.
Two kinds of scaling there depend on the longest sequence of the batch; both are constant up to
`ModelConfig.max_model_len`, so here a row depends on nothing but its own position.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

CosSin = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, `[1, num_tokens, rotary_dim]` each."""

_MIN_ROWS = 1024


class RotaryRows(NamedTuple):
    """Rotary embedding of the rows of a micro-batch, `[num_tokens, rotary_dim]` each."""

    cos: torch.Tensor
    sin: torch.Tensor
    swapped_sin: torch.Tensor
    """`sin` with its first half negated: `rotate_half(x) * sin` is `x`, its halves swapped, times
    this."""

    @property
    def cos_sin(self) -> CosSin:
        """Cosines and sines in the shape that transformers' layers take."""
        return self.cos.unsqueeze(0), self.sin.unsqueeze(0)


class NoRotary(nn.Module):
    """In the place of a rotary embedding in families that know positions otherwise."""

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> CosSin:
        """Returns no cosines and no sines of positions `[1, num_tokens]`, in `hidden`'s dtype."""
        nothing = hidden.new_empty(*positions.shape, 0)
        return nothing, nothing


class Rotary:
    """Rotary embeddings of positions, for every layer of a stage.

    Keeps a table of all positions seen so far, rounded up to a power of two.

    Args:
        module: transformers' rotary embedding; its buffers are not on the meta device.
        layer_types: Type of each local layer when each type has an embedding of its own; None:
            all layers share one.
        num_layers: Local layers.
        max_num_positions: Positions that there can be.
    """

    def __init__(
        self,
        module: nn.Module,
        layer_types: Sequence[str] | None,
        num_layers: int,
        *,
        max_num_positions: int,
    ) -> None:
        self._module = module
        self._layer_types: Sequence[str | None] = layer_types or [None] * num_layers
        self._max_num_positions = max_num_positions
        self._tables: dict[str | None, torch.Tensor] = {}
        self._num_rows = 0

    def to(self, device: torch.device) -> None:
        """Moves the frequencies; before the first `at`."""
        self._module.to(device)

    def at(
        self, hidden: torch.Tensor, positions: torch.Tensor, num_positions: int
    ) -> Sequence[RotaryRows]:
        """Looks up the embeddings of one step.

        Args:
            hidden: Gives dtype and device, the same in every call.
            positions: int64 `[num_tokens]` on the device.
            num_positions: All of them are below this, which is at most `max_num_positions`.

        Returns:
            One a local layer; layers that share an embedding share the tensors.
        """
        if num_positions > self._num_rows:
            self._grow(hidden, num_positions)
        rows = {
            layer_type: RotaryRows(*table.index_select(0, positions).unbind(1))
            for layer_type, table in self._tables.items()
        }
        return [rows[layer_type] for layer_type in self._layer_types]

    def compute(
        self, hidden: torch.Tensor, positions: torch.Tensor, layer_type: str | None
    ) -> CosSin:
        """Computes the embeddings of positions `[num_tokens]` for layers of a type."""
        types = () if layer_type is None else (layer_type,)
        cos, sin = self._module(hidden, positions.unsqueeze(0), *types)
        return cos, sin

    def _grow(self, hidden: torch.Tensor, num_positions: int) -> None:
        rounded = max(_MIN_ROWS, 1 << (num_positions - 1).bit_length())
        self._num_rows = min(rounded, self._max_num_positions)
        positions = torch.arange(self._num_rows, device=hidden.device)
        for layer_type in set(self._layer_types):
            cos, sin = (part[0] for part in self.compute(hidden, positions, layer_type))
            half = sin.shape[-1] // 2
            swapped_sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
            self._tables[layer_type] = torch.stack((cos, sin, swapped_sin), dim=1)
