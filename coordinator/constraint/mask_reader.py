"""Masks of the grammar engine as token ids."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MAX_KEPT = 16
"""Masks that are kept as ids. Inside a string most tokens may follow, and the same ones in every
output; for a large vocabulary that is a megabyte."""


class MaskReader:
    """Reads masks; one that was just read for another output costs nothing.

    Args:
        vocab_size: Logits in a row; bits beyond are ignored.
        avoided_ids: Tokens that are taken only where nothing else is allowed.
    """

    def __init__(self, vocab_size: int, avoided_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        self._avoided_ids = np.array(sorted(avoided_ids), dtype=np.int64)
        self.read = lru_cache(_MAX_KEPT)(self._read)
        """Turns a bit for every token, the lowest first, into the ids of those set, rising."""

    def _read(self, mask: bytes) -> npt.NDArray[np.int64]:
        num_bits = min(8 * len(mask), self._vocab_size)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=num_bits, bitorder="little")
        allowed_ids = np.flatnonzero(bits.view(np.bool_))  # five times faster than of numbers
        if len(self._avoided_ids):
            others = np.setdiff1d(allowed_ids, self._avoided_ids, assume_unique=True)
            allowed_ids = others if len(others) else allowed_ids
        allowed_ids.flags.writeable = False
        return allowed_ids
