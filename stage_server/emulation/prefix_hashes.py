"""The KV of an emulated stage: for every token, a hash of its sequence up to it.

    row of hidden states:   [ token id, 4 digits | hash, 4 digits | 0 ... ]   base 256

The first stage makes the hash of a token from that of the token before, which it keeps where a real
stage keeps keys and values. Each later stage makes it again from its own memory and compares: if
they differ, memory was lost or mixed up on the way, and the stage passes on a third value, as wrong
KV would spoil real hidden states. So the hash that reaches the logits is a function of the sequence
alone, whatever the batch, the chunks and the number of stages, as long as every slot, fork,
truncate and replay was handled right on every stage.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.slot_tables import BlockPlan
from stagecoach.roofline.hashed_tokens import EMPTY_HASH, mix

MIN_HIDDEN_SIZE = 8
"""Digits of a row. Whole numbers up to 255 are exact in each dtype of hidden states."""


class PrefixHashes:
    """Hashes of all tokens in all blocks.

    Args:
        num_blocks: Blocks in the pool.
        block_size: Tokens a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._hashes = np.zeros((num_blocks, block_size), np.uint32)

    def prepare(self, plan: BlockPlan) -> None:
        """Copies shared blocks that will be written."""
        for copy in plan.copies:
            self._hashes[copy.target] = self._hashes[copy.source]

    def extend(
        self, slices: Sequence[SequenceSlice], plan: BlockPlan, token_ids: Sequence[int]
    ) -> list[int]:
        """Hashes the tokens of a micro-batch, each with all before it, and keeps the hashes.

        Args:
            slices: The micro-batch's.
            plan: Their blocks.
            token_ids: Token ids of all slices, packed.

        Returns:
            One hash a token.
        """
        hashes: list[int] = []
        for piece, blocks in zip(slices, plan.block_tables, strict=True):
            value = EMPTY_HASH
            if piece.start_position:
                value = int(self._hashes[self._place(blocks, piece.start_position - 1)])
            first = len(hashes)
            for token_id in token_ids[first : first + piece.num_tokens]:
                value = mix(value, token_id)
                hashes.append(value)
            for offset in range(piece.num_tokens):
                place = self._place(blocks, piece.start_position + offset)
                self._hashes[place] = hashes[first + offset]
        return hashes

    def _place(self, blocks: Sequence[int], position: int) -> tuple[int, int]:
        return blocks[position // self._block_size], position % self._block_size


def agreed(received: Sequence[int], own: Sequence[int]) -> list[int]:
    """Returns what a stage passes on: hashes that it made again itself, or else spoilt ones."""
    return [a if a == b else mix(a, b) for a, b in zip(received, own, strict=True)]


def write_rows(
    token_ids: Sequence[int], hashes: Sequence[int], hidden_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """Writes hidden states, `[num_tokens, hidden_size]`."""
    numbers = np.array([token_ids, hashes], "<u4").T
    digits = np.ascontiguousarray(numbers).view(np.uint8)
    rows = torch.zeros((len(token_ids), hidden_size), dtype=dtype)
    rows[:, :MIN_HIDDEN_SIZE] = torch.from_numpy(digits)
    return rows


def read_rows(rows: torch.Tensor) -> tuple[list[int], list[int]]:
    """Reads token ids and hashes from hidden states `[num_tokens, hidden_size]`.

    Rows that `write_rows` did not write, such as a warm-up's zeros, give some numbers too.
    """
    # Through a wider type, because what is no digit must wrap around instead of raising.
    digits = rows[:, :MIN_HIDDEN_SIZE].nan_to_num().to(torch.int64).to(torch.uint8)
    numbers: npt.NDArray[np.uint32] = digits.contiguous().numpy().view("<u4")
    return numbers[:, 0].tolist(), numbers[:, 1].tolist()
