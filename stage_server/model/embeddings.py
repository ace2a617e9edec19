"""Forms in which the rows of an embedding are kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from stage_server.kernels.grouped import packed_groups
from stage_server.model.coded_rows import GROUP_SIZE, CodedRows
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
        hidden_size: How many columns.
        device: Where they are to live.
    """

    def __init__(
        self, parts: Iterable[CodedRows], vocab_size: int, hidden_size: int, device: torch.device
    ) -> None:
        super().__init__()
        self._hidden_size = hidden_size
        self.rows = StoredGroups(parts, vocab_size, device, partial(packed_groups, num_bits=8))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns rows in float32; `CodedRows.values` is the slow twin."""
        stored = self.rows
        numbers = stored.codes[token_ids] - float(_MIDDLE)  # [num_tokens, whole groups], float32
        groups = numbers.view(len(token_ids), -1, GROUP_SIZE)
        groups *= stored.scales[token_ids].unsqueeze(-1)
        if stored.offsets is not None:
            groups += stored.offsets[token_ids].unsqueeze(-1)
        return numbers[:, : self._hidden_size]
