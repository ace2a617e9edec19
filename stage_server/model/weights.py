"""Loads tensors from files onto a device, a few rows at a time.

Converting a whole tensor would need memory for a second copy of it. For a stage of one layer and a
head, a copy of the head is more than the stage itself.
"""

import math
from collections.abc import Sequence

import torch

from stage_server.core.load_board import WeightProgress
from stage_server.model.weight_plan import ParameterSource, Shape, WeightPlan
from stagecoach.model_files import TensorReader

_MAX_CHUNK_BYTES = 1 << 20
"""Read at once, in float32; at least one row."""


class WeightSource:
    """Reads parameters as torch tensors.

    Args:
        reader: Open tensors.
        plan: What the parameters are made of; the tensors have its shapes.
        max_peek_elements: How many elements `peek` should be asked for at most; it keeps memory
            for the largest number asked for.
        progress: Told what was read.
    """

    def __init__(
        self,
        reader: TensorReader,
        plan: WeightPlan,
        *,
        max_peek_elements: int,
        progress: WeightProgress | None = None,
    ) -> None:
        self._progress = progress
        self.max_peek_elements = max_peek_elements
        self._reader = reader
        self._plan = plan
        self._prefix = ""
        self._scratch = _Scratch()

    def within(self, prefix: str) -> "WeightSource":
        """Returns a source of the names below `prefix`, such as `model.layers.12.`."""
        source = WeightSource(
            self._reader,
            self._plan,
            max_peek_elements=self.max_peek_elements,
            progress=self._progress,
        )
        source._prefix = self._prefix + prefix
        source._scratch = self._scratch
        return source

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._plan

    def shape(self, name: str) -> Shape:
        """Returns the shape of a parameter."""
        return self._made_of(name).shape

    def are_equal(self, first: str, second: str) -> bool:
        """Returns whether two parameters hold the same values, bit for bit.

        Args:
            first: A parameter that is one tensor of the files.
            second: Another parameter that is one tensor of the files.
        """
        tensors = [self._made_of(name).tensors for name in (first, second)]
        assert all(len(each) == 1 for each in tensors), "both are one tensor"
        (one,), (other,) = tensors
        if one.name == other.name:
            return True
        if self._reader.info(one.name) != self._reader.info(other.name):
            return False
        num_rows, *rest = one.shape
        step = max(_MAX_CHUNK_BYTES // (4 * math.prod(rest)), 1)
        for low in range(0, num_rows, step):
            high = min(low + step, num_rows)
            rows = [self._reader.read(tensor.name, low, high) for tensor in (one, other)]
            if rows[0].tobytes() != rows[1].tobytes():
                return False
        return True

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Loads a parameter into memory of its own."""
        source = self._made_of(name)
        target = torch.empty(source.shape, dtype=dtype, device=device)
        self._fill(target.view(source.num_rows, *source.row_shape), source, 0)
        return target

    def peek(self, name: str, start: int, end: int) -> torch.Tensor:
        """Reads rows `[start, end)` of a parameter as float32 on the CPU.

        The rows of an expert come after those of the expert before.

        Returns:
            `[end - start, ...]`, in memory that the next call overwrites.
        """
        source = self._made_of(name)
        target = self._scratch.view((end - start, *source.row_shape))
        self._fill(target, source, start)
        return target

    def _made_of(self, name: str) -> ParameterSource:
        return self._plan.source(self._prefix + name)

    def _fill(self, target: torch.Tensor, source: ParameterSource, start: int) -> None:
        """Fills `target` with the rows from `start` on, converted to its dtype."""
        end = start + target.shape[0]
        first = 0
        for name, shape in source.tensors:
            last = first + shape[0]
            low, high = max(start, first), min(end, last)
            if low < high:
                self._fill_from_one(target[low - start : high - start], name, low - first)
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
