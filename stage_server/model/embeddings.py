"""Forms in which the rows of an embedding are kept."""

from collections.abc import Iterable

import torch
from torch import nn

from stage_server.model.coded_rows import CodedRows

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
    """

    def __init__(self, parts: Iterable[CodedRows]) -> None:
        super().__init__()
        codes, scales, offsets = zip(*parts, strict=True)
        self.codes = nn.Buffer(torch.cat(codes))
        self.scales = nn.Buffer(torch.cat([each.half() for each in scales]))
        has_offsets = any(each.any() for each in offsets)
        self.offsets = (
            nn.Buffer(torch.cat([each.half() for each in offsets])) if has_offsets else None
        )

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns rows in float32."""
        scales = self.scales[token_ids].float()
        offsets = torch.zeros_like(scales) if self.offsets is None else self.offsets[token_ids]
        return CodedRows(self.codes[token_ids], scales, offsets.float()).values(_MIDDLE)
