"""Loads tensors from files onto a device, a few rows at a time.

Converting a whole tensor would need memory for a second copy of it. For a stage of one layer and a
head, a copy of the head is more than the stage itself.
"""

import math
from collections.abc import Sequence

import torch

from stage_server.core.load_board import WeightProgress
from stagecoach.model_files import TensorReader

_MAX_CHUNK_BYTES = 1 << 20
"""Read at once, in float32; at least one row."""


class WeightSource:
    """Reads weights as torch tensors.

    Args:
        reader: Open tensors.
        max_peek_elements: How many elements `peek` should be asked for at most; it keeps memory
            for the largest number asked for.
        progress: Told what was read.
    """

    def __init__(
        self,
        reader: TensorReader,
        *,
        max_peek_elements: int,
        progress: WeightProgress | None = None,
    ) -> None:
        self._progress = progress
        self.max_peek_elements = max_peek_elements
        self._reader = reader
        self._prefix = ""
        self._scratch = _Scratch()

    def within(self, prefix: str) -> "WeightSource":
        """Returns a source of the names below `prefix`, such as `model.layers.12.`."""
        source = WeightSource(
            self._reader, max_peek_elements=self.max_peek_elements, progress=self._progress
        )
        source._prefix = self._prefix + prefix
        source._scratch = self._scratch
        return source

    def shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns the shape of tensors stacked along their first dimension."""
        shapes = [self._reader.info(self._prefix + name).shape for name in names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def are_equal(self, first: str, second: str) -> bool:
        """Returns whether two tensors of one shape hold the same values, bit for bit."""
        names = [self._prefix + name for name in (first, second)]
        if names[0] == names[1]:
            return True
        infos = [self._reader.info(name) for name in names]
        if infos[0] != infos[1]:
            return False
        num_rows, *rest = infos[0].shape
        step = max(_MAX_CHUNK_BYTES // (4 * math.prod(rest)), 1)
        for low in range(0, num_rows, step):
            high = min(low + step, num_rows)
            rows = [self._reader.read(name, low, high) for name in names]
            if rows[0].tobytes() != rows[1].tobytes():
                return False
        return True

    def load(self, *names: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Loads tensors, stacked along their first dimension, into memory of their own."""
        target = torch.empty(self.shape(names), dtype=dtype, device=device)
        self._fill(target, names, 0)
        return target

    def peek(self, names: Sequence[str], start: int, end: int) -> torch.Tensor:
        """Reads rows `[start, end)` of stacked tensors as float32 on the CPU.

        Returns:
            `[end - start, ...]`, in memory that the next call overwrites.
        """
        target = self._scratch.view((end - start, *self.shape(names)[1:]))
        self._fill(target, names, start)
        return target

    def _fill(self, target: torch.Tensor, names: Sequence[str], start: int) -> None:
        """Fills `target` with the rows from `start` on, converted to its dtype."""
        end = start + target.shape[0]
        first = 0
        for name in names:
            last = first + self.shape([name])[0]
            low, high = max(start, first), min(end, last)
            if low < high:
                rows = target[low - start : high - start]
                self._fill_from_one(rows, self._prefix + name, low - first)
            first = last

    def _fill_from_one(self, target: torch.Tensor, name: str, start: int) -> None:
        num_rows = target.shape[0]
        step = max(_MAX_CHUNK_BYTES // (4 * target[0].numel()), 1)
        is_bfloat16 = self._reader.info(name).dtype == "bfloat16"
        for low in range(0, num_rows, step):
            high = min(low + step, num_rows)
            rows = torch.from_numpy(self._reader.read(name, start + low, start + high))
            target[low:high].copy_(rows.view(torch.bfloat16) if is_bfloat16 else rows)
            if self._progress is not None:
                self._progress.read(name, start + high, target[0].numel())


class _Scratch:
    """Memory for one tensor at a time.

    Allocating it anew for each would leave holes between the weights that are kept.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def view(self, shape: Sequence[int]) -> torch.Tensor:
        """Float32, of this shape, undefined content."""
        size = math.prod(shape)
        if size > self._memory.numel():
            self._memory = torch.empty(size)
        return self._memory[:size].view(*shape)
