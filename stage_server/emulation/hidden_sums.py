"""Final hidden states made of hashes, and their sums.

All hidden states are one list of numbers, rotated by the hash, as all rows of logits are. Equal
texts have equal embeddings; two texts have the same one by chance alone. The numbers are multiples
of 1/256 in [-1, 1), so that sums of up to 65 536 of them are exact in float32, whatever the chunks.
"""

from collections.abc import Sequence

import torch

from stage_server.compute.noise import hashed, signed
from stage_server.core.batch import HiddenSum
from stagecoach.contract.hidden_sums import HiddenSumRequest

_GAMMA = signed(0x9E3779B97F4A7C15)
"""Step of SplitMix64."""


class HashedHidden:
    """Makes the sums of final hidden states from hashes.

    Args:
        hidden_size: Width of a hidden state.
    """

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        bits = hashed(torch.arange(1, hidden_size + 1) * _GAMMA)
        numbers = (bits & 511).to(torch.float32).sub_(256).div_(256)
        self._twice = torch.cat([numbers, numbers])

    def row(self, prefix_hash: int) -> torch.Tensor:
        """Returns one hidden state, float32 `[hidden_size]`."""
        end = 2 * self._hidden_size - prefix_hash % self._hidden_size
        return self._twice[end - self._hidden_size : end]

    def add_up(self, prefix_hashes: Sequence[int], request: HiddenSumRequest) -> HiddenSum:
        """Adds up hidden states as `stage_server.compute.hidden_sums.HiddenSums` would."""
        total = torch.zeros(self._hidden_size)
        for prefix_hash in prefix_hashes:
            total += self.row(prefix_hash)
        return HiddenSum(first_row=request.first_row, sum=total)
