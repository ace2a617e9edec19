"""Forms in which the rows of an embedding are kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from stage_server.model.coded_rows import CodedRows
from stage_server.model.stored_groups import StoredGroups

_MIDDLE = 128
"""Code of a number in the middle."""


class Embedding(nn.Module, ABC):
    """A matrix `[vocab_size, hidden_size]` whose rows are looked up."""

    @abstractmethod
    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Looks up int64 `[num_tokens]`; returns `[num_tokens, hidden_size]`, of any dtype."""


class PlainEmbedding(Embedding):
    """An embedding of plain numbers.

    Args:
        weight: `[vocab_size, hidden_size]`.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns rows in the dtype of the weights."""
        return nn.functional.embedding(token_ids, self.weight)


class CodedEmbedding(Embedding):
    """An embedding in 8 bits, with scales and offsets in float16.

    Args:
        parts: The rows, one part after another.
        vocab_size: How many rows there are.
        device: Where they are to live.
    """

    def __init__(self, parts: Iterable[CodedRows], vocab_size: int, device: torch.device) -> None:
        super().__init__()
        self.rows = StoredGroups(parts, vocab_size, device)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns rows in float32."""
        stored = self.rows
        scales = stored.scales[token_ids].float()
        offsets = torch.zeros_like(scales) if stored.offsets is None else stored.offsets[token_ids]
        return CodedRows(stored.codes[token_ids], scales, offsets.float()).values(_MIDDLE)
