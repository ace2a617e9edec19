"""Rows of a matrix in few bits, as files keep them, before a device packs them in its own way."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_SCALE = float(np.finfo(np.float16).max)
"""Largest scale of a group that devices keep; scales of weights are a millionth of it."""


class GroupedRows(NamedTuple):
    """Rows whose numbers are codes; each group of neighbours in a row has a scale.

    A number is `scale * (code - zero) + offset`, in float32.
    """

    codes: npt.NDArray[np.uint8]
    """`[num_rows, num_columns]`."""
    zero: int
    """The code of 0 where there are no offsets."""
    scales: npt.NDArray[np.float32]
    """`[num_rows, num_groups]`, of groups of equal size."""
    offsets: npt.NDArray[np.float32] | None
    """As the scales; None: all are 0."""

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def rows(self, order: npt.NDArray[np.int64] | slice) -> "GroupedRows":
        """Some of the rows, or all in another order."""
        offsets = None if self.offsets is None else self.offsets[order]
        return GroupedRows(self.codes[order], self.zero, self.scales[order], offsets)

    def values(self) -> npt.NDArray[np.float32]:
        """The numbers, `[num_rows, num_columns]`."""
        signed = self.codes.astype(np.float32) - np.float32(self.zero)
        numbers = signed.reshape(*self.scales.shape, -1) * self.scales[..., None]
        if self.offsets is not None:
            numbers += self.offsets[..., None]
        return numbers.reshape(self.codes.shape)


def rounded_rows(values: npt.NDArray[np.float32]) -> GroupedRows:
    """Rounds rows to nearest, in 8 bits and groups of 32 spread about 0.

    Args:
        values: `[num_rows, num_columns]`, whole groups.
    """
    groups = values.reshape(len(values), -1, 32)
    scales = np.abs(groups).max(-1) / np.float32(127)
    steps = np.where(scales > 0, scales, np.float32(1))[..., None]
    codes = (np.rint(groups / steps) + 128).astype(np.uint8)
    return GroupedRows(codes.reshape(values.shape), 128, scales, None)
