"""What stands before the first layer and after the last: token embedding and output head."""

import torch
from torch import nn

from stage_server.model.embeddings import Embedding
from stage_server.model.linear_format import Linear


class TokenEmbedding(nn.Module):
    """Looks up token embeddings.

    Args:
        rows: The embeddings.
        scale: Factor on them.
        dtype: Dtype of the output.
        norm: Norms what comes out; None: nothing does.
        positions: `[num_positions, hidden_size]`: added to what tokens at each position have; None:
            nothing is.
    """

    _positions: torch.Tensor | None

    def __init__(
        self,
        rows: Embedding,
        *,
        scale: float,
        dtype: torch.dtype,
        norm: nn.Module | None = None,
        positions: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.norm = norm
        self.register_buffer("_positions", positions)
        self._dtype = dtype
        # As transformers does, the factor is rounded to the dtype it is multiplied in.
        self._scale = torch.tensor(scale, dtype=dtype).item()

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Looks up tokens and where they stand.

        Args:
            token_ids: int64 `[num_tokens]`.
            positions: int64 `[num_tokens]`.

        Returns:
            `[num_tokens, hidden_size]`.
        """
        embeddings: torch.Tensor = self.rows(token_ids).to(self._dtype)
        if self._scale != 1.0:
            embeddings = embeddings * self._scale
        if self._positions is not None:
            embeddings = embeddings + nn.functional.embedding(positions, self._positions)
        return embeddings if self.norm is None else self.norm(embeddings)


class LogitsHead(nn.Module):
    """Final norm, projection to the vocabulary, and the family's scaling of logits.

    Args:
        norm: The final norm.
        projection: `hidden_size` to `vocab_size`.
        scale: Factor on the logits.
        softcap: They become `softcap * tanh(logits / softcap)`; None: unchanged.
    """

    def __init__(
        self,
        norm: nn.Module,
        projection: Linear,
        *,
        scale: float,
        softcap: float | None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.projection = projection
        self._scale = scale
        self._softcap = softcap

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes float32 logits `[num_rows, vocab_size]` of `[num_rows, hidden_size]`."""
        logits: torch.Tensor = self.projection(self.norm(hidden))
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits.float()
