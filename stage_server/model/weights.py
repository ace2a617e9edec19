"""From tensors in files to tensors on a device, never more than a few rows at a time in between.

Converting whole tensors would need room for a second copy of the largest, which for a stage of one
layer and a head is more than the stage itself.
"""

from collections.abc import Sequence

import torch

from model_files import TensorReader

MAX_CHUNK_BYTES = 8 << 20
"""Read at once, at least one row."""


class WeightSource:
    """Reads weights as torch tensors.

    Args:
        reader: Open tensors.
        prefix: Put before every name, such as `model.layers.12.`.
    """

    def __init__(self, reader: TensorReader, prefix: str = "") -> None:
        """Remembers both."""
        self._reader = reader
        self._prefix = prefix

    def within(self, prefix: str) -> "WeightSource":
        """Returns a source whose names are below `prefix`."""
        return WeightSource(self._reader, self._prefix + prefix)

    def load(self, *names: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Loads tensors, stacked along their first dimension, each of at least one dimension.

        Returns:
            `[sum of rows, ...]`, of its own memory.
        """
        shapes = [self._reader.info(self._prefix + name).shape for name in names]
        num_rows = sum(shape[0] for shape in shapes)
        target = torch.empty((num_rows, *shapes[0][1:]), dtype=dtype, device=device)
        self.fill(target, names, 0)
        return target

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns the shape of tensors stacked along their first dimension."""
        shapes = [self._reader.info(self._prefix + name).shape for name in names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def fill(self, target: torch.Tensor, names: Sequence[str], start: int) -> None:
        """Fills `target` with rows of stacked tensors, converted to its dtype.

        Args:
            target: `[num_rows, ...]`.
            names: The tensors that are stacked.
            start: First row of the stack that is wanted.
        """
        end = start + target.shape[0]
        first = 0
        for name in names:
            last = first + self._reader.info(self._prefix + name).shape[0]
            low, high = max(start, first), min(end, last)
            if low < high:
                rows = target[low - start : high - start]
                self._fill_one(rows, self._prefix + name, low - first)
            first = last

    def _fill_one(self, target: torch.Tensor, name: str, start: int) -> None:
        num_rows = target.shape[0]
        row_bytes = max(4 * target[0].numel(), 1)
        step = max(MAX_CHUNK_BYTES // row_bytes, 1)
        is_bfloat16 = self._reader.info(name).dtype == "bfloat16"
        for low in range(0, num_rows, step):
            high = min(low + step, num_rows)
            rows = torch.from_numpy(self._reader.read(name, start + low, start + high))
            target[low:high].copy_(rows.view(torch.bfloat16) if is_bfloat16 else rows)
