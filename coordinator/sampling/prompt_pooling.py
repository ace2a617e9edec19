"""From sums of hidden states to the embedding of a prompt."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from coordinator.core.embedding import EmbeddingParams
from stagecoach.contract.errors import InternalError


class PromptPooling:
    """The embedding of one prompt as it grows.

    Args:
        params: How the hidden states become one vector.
        num_prompt_tokens: Tokens of the prompt.
    """

    def __init__(self, params: EmbeddingParams, num_prompt_tokens: int) -> None:
        self._params = params
        self._num_pooled = num_prompt_tokens - params.first_position(num_prompt_tokens)
        self._total: npt.NDArray[np.float64] | None = None

    def add(self, hidden_sum: Sequence[float]) -> None:
        """Adds the sum of the hidden states of some tokens, each of which counts once.

        Args:
            hidden_sum: A buffer of float32, `[hidden_size]`, all of them finite.
        """
        part = np.asarray(hidden_sum, dtype=np.float64)
        self._total = part if self._total is None else self._total + part

    def embedding(self) -> Sequence[float] | None:
        """Returns the embedding, once all that counts was added, as a buffer of float32.

        Returns:
            None where nothing was added: the request ended before.
        """
        if self._total is None:
            return None
        vector = (self._total / self._num_pooled)[: self._params.dimensions]
        if self._params.normalize:
            vector /= np.linalg.norm(vector) or 1.0
        return cast("Sequence[float]", vector.astype(np.float32).data)


def check_finite(hidden_sum: Sequence[float]) -> None:
    """Checks what the last stage has added up.

    Raises:
        InternalError: The model produced NaN or infinite hidden states.
    """
    if not np.isfinite(np.asarray(hidden_sum)).all():
        raise InternalError("model produced NaN or infinite hidden states")
