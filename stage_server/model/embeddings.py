"""Forms in which the rows of an embedding are kept."""

from collections.abc import Iterable

import torch
from torch import nn

from stage_server.model.coded_rows import GROUP_SIZE, CodedRows

_MIDDLE = 128
"""Code of a number in the middle."""


class Embedding(nn.Module):
    """A matrix `[vocab_size, hidden_size]` whose rows are looked up."""

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Looks up int64 `[num_tokens]`; returns `[num_tokens, hidden_size]`, of any dtype."""
        raise NotImplementedError


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

    offsets: torch.Tensor | None

    def __init__(
        self,
        parts: Iterable[CodedRows],
        vocab_size: int,
        hidden_size: int,
        device: torch.device,
    ) -> None:
        super().__init__()

        def empty(width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(vocab_size, width, dtype=dtype, device=device)

        num_groups = -(-hidden_size // GROUP_SIZE)
        self.codes = nn.Buffer(empty(hidden_size, torch.uint8))
        self.scales = nn.Buffer(empty(num_groups, torch.float16))
        self.register_buffer("offsets", None)
        end = 0
        for part in parts:
            start, end = end, end + len(part.codes)
            self.codes[start:end] = part.codes
            self.scales[start:end] = part.scales
            if self.offsets is None and part.offsets.any():
                self.offsets = torch.zeros_like(self.scales)
            if self.offsets is not None:
                self.offsets[start:end] = part.offsets
        assert end == vocab_size, "the parts are all rows"

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns rows in float32."""
        scales = self.scales[token_ids].float()
        offsets = torch.zeros_like(scales) if self.offsets is None else self.offsets[token_ids]
        return CodedRows(self.codes[token_ids], scales, offsets.float()).values(_MIDDLE)
