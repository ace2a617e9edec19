"""Loads tensors from files onto a device, a few rows at a time.

Converting a whole tensor would need memory for a second copy of it. For a stage of one layer and a
head, a copy of the head is more than the stage itself.
"""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stage_server.core.load_board import WeightProgress
from stage_server.model.weight_plan import CheckpointTensor, ParameterSource, Shape, WeightPlan
from stagecoach.model_files import TensorReader
from stagecoach.model_files.grouped_rows import GroupedRows

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
        self._expert: int | None = None
        self._scratch = _Scratch()
        self._whole = _WholeMatrices(reader)

    def within(self, prefix: str) -> "WeightSource":
        """Returns a source of the names below `prefix`, such as `model.layers.12.`."""
        source = copy(self)
        source._prefix = self._prefix + prefix
        return source

    def of_expert(self, expert: int) -> "WeightSource":
        """Returns a source of one expert's share of parameters that all experts have."""
        source = copy(self)
        source._expert = expert
        return source

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._plan

    @property
    def num_elements(self) -> int:
        """Elements of all tensors of the plan, each once."""
        return self._plan.num_elements

    def shape(self, name: str) -> Shape:
        """Returns the shape of a parameter."""
        return self._made_of(name).shape

    def num_parts_of_expert(self, name: str) -> int:
        """Returns of how many tensors an expert's share of a parameter is made."""
        return len(self._made_of(name).of_expert(0).tensors)

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

    def runs(self, name: str) -> list["Run"]:
        """Returns the rows of a matrix, divided where the form changes in which files keep them."""
        runs: list[Run] = []
        end = 0
        for tensor in self._made_of(name).tensors:
            start, end = end, end + tensor.shape[0]
            bits = self._reader.info(tensor.name).code_bits
            if runs and runs[-1].code_bits == bits:
                start = runs.pop().start
            runs.append(Run(start, end, bits))
        return runs

    def groups(self, name: str, start: int, end: int) -> Iterator[GroupedRows]:
        """Reads rows `[start, end)` of a matrix, from a run with `code_bits`, as files keep them.

        Yields:
            The rows that come from one tensor, and so on.
        """
        for part in self._parts(self._made_of(name), start, end):
            yield self._reader.read_groups(part.tensor.name, part.start, part.end)
            self._report(part)

    def _made_of(self, name: str) -> ParameterSource:
        source = self._plan.source(self._prefix + name)
        return source if self._expert is None else source.of_expert(self._expert)

    def _fill(self, target: torch.Tensor, source: ParameterSource, start: int) -> None:
        """Fills `target` with the rows from `start` on, converted to its dtype."""
        done = 0
        for part in self._parts(source, start, start + target.shape[0]):
            self._fill_from_one(target[done : done + part.end - part.start], part)
            done += part.end - part.start

    @staticmethod
    def _parts(source: ParameterSource, start: int, end: int) -> Iterator["_Part"]:
        """Yields which rows of which tensors are the rows `[start, end)` of a parameter."""
        first = 0
        for tensor in source.tensors:
            num_rows = tensor.num_rows
            low, high = max(start, first), min(end, first + num_rows)
            if low < high:
                yield _Part(tensor, low - first, high - first)
            first += num_rows

    def _fill_from_one(self, target: torch.Tensor, part: "_Part") -> None:
        step = max(_MAX_CHUNK_BYTES // (4 * part.row_elements), 1)
        is_bfloat16 = self._reader.info(part.tensor.name).dtype == "bfloat16"
        for low in range(part.start, part.end, step):
            high = min(low + step, part.end)
            rows = torch.from_numpy(self._read(part.tensor, low, high))
            rows = rows.view(torch.bfloat16) if is_bfloat16 else rows
            target[low - part.start : high - part.start].copy_(rows)
            self._report(part._replace(end=high))

    def _read(self, tensor: CheckpointTensor, start: int, end: int) -> npt.NDArray[np.generic]:
        if tensor.expert is None and not tensor.is_transposed:
            return self._reader.read(tensor.name, start, end)
        return self._whole.read(tensor)[start:end]

    def _report(self, part: "_Part") -> None:
        """Says that a part was read."""
        if self._progress is None:
            return
        tensor = part.tensor
        before = 0 if tensor.expert is None else tensor.expert * tensor.shape[0]
        self._progress.read(tensor.name, before + part.end, part.row_elements)


class Run(NamedTuple):
    """Rows of a matrix that files keep in one form."""

    start: int
    end: int
    code_bits: int | None
    """Bits of a code; None: plain numbers."""


class _Part(NamedTuple):
    """Rows of one tensor."""

    tensor: CheckpointTensor
    start: int
    end: int

    @property
    def row_elements(self) -> int:
        """Elements of a row."""
        return math.prod(self.tensor.shape[1:])


class _WholeMatrices:
    """Reads what no rows of a file are: experts of tensors that have several, and transposed ones.

    The matrix read last stays in memory, as its rows are asked for a few at a time.
    """

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self._last: tuple[CheckpointTensor, npt.NDArray[np.generic]] | None = None

    def read(self, tensor: CheckpointTensor) -> npt.NDArray[np.generic]:
        """Reads what is meant of a tensor."""
        if self._last is None or self._last[0] != tensor:
            self._last = None  # frees its memory before there is another
            expert = tensor.expert
            if expert is None:
                part = self._reader.read(tensor.name)
            else:
                [part] = self._reader.read(tensor.name, expert, expert + 1)
            self._last = tensor, np.ascontiguousarray(part.T) if tensor.is_transposed else part
        return self._last[1]


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
