"""Reads the tensors of open GGUF files as Hugging Face names and orders them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.gguf_blocks import BLOCK_TYPES, code_bits, grouped_rows
from stagecoach.model_files.gguf_parts import GgufParts
from stagecoach.model_files.grouped_rows import MAX_SCALE, GroupedRows, rounded_rows
from stagecoach.model_files.model_files import TensorInfo


class StoredTensor(NamedTuple):
    """What a tensor of Hugging Face is in the file."""

    name: str
    shape: tuple[int, ...]
    expert: int | None
    """Whose part of the tensor it is; None: it is the whole tensor."""

    @property
    def first_row(self) -> int:
        """Row of the tensor, whose matrices follow each other, that is its first."""
        return 0 if self.expert is None else self.expert * self.shape[0]


class GgufReader:
    """Implements `TensorReader` over open GGUF files; `read` gives float32.

    Args:
        files: Open files.
        stored: What tensors of Hugging Face are in them.
        row_order: Says for a tensor of the files the stored row of each row; None: the same.
        norm_shift: By how much weights of norms are more than in Hugging Face's.
    """

    def __init__(
        self,
        files: GgufParts,
        stored: Mapping[str, StoredTensor],
        row_order: Callable[[str], npt.NDArray[np.int64] | None],
        *,
        norm_shift: float = 0.0,
    ) -> None:
        self._files = files
        self._stored = stored
        self._row_order = row_order
        self._norm_shift = norm_shift

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        gguf_name, shape, _ = self._stored[name]
        kind = self._files.tensors[gguf_name].type
        return TensorInfo("float32", shape, code_bits(kind) if len(shape) == 2 else None)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows; see `TensorReader.read`."""
        gguf_name, shape, _ = self._stored[name]
        wanted = slice(start, shape[0] if end is None else end)
        if len(shape) == 1:
            vector = dequantized_rows(self._files, gguf_name, 0, 1)[0]
            if gguf_name.endswith("norm.weight"):
                vector = vector - np.float32(self._norm_shift)
            order = self._row_order(gguf_name)
            ordered: npt.NDArray[np.float32] = vector if order is None else vector[order]
            return ordered[wanted]
        first, last, order = self._rows(name, wanted)
        rows = dequantized_rows(self._files, gguf_name, first, last)
        return rows if order is None else rows[order]

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        """Reads rows; see `TensorReader.read_groups`."""
        gguf_name = self._stored[name].name
        first, last, order = self._rows(name, slice(start, end))
        file = self._files.file_of(gguf_name)
        kind = BLOCK_TYPES.get(file.tensors[gguf_name].type)
        if kind is None:
            with np.errstate(invalid="ignore"):  # of damaged scales, which are refused below
                groups = rounded_rows(dequantized_rows(self._files, gguf_name, first, last))
        else:
            groups = grouped_rows(kind, file.read_rows(gguf_name, first, last))
        for numbers in (groups.scales, groups.offsets):
            if numbers is not None and not (np.abs(numbers) <= MAX_SCALE).all():
                raise ModelFilesError(
                    f"{file.name}: {gguf_name!r} is damaged: a scale is no number up to "
                    f"{MAX_SCALE:.0f}"
                )
        return groups if order is None else groups.rows(order)

    def _rows(self, name: str, wanted: slice) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """Which rows of the file hold those wanted, and their order in them."""
        stored = self._stored[name]
        order = self._row_order(stored.name)
        if order is None:
            return stored.first_row + wanted.start, stored.first_row + wanted.stop, None
        rows = order[wanted]
        first = int(rows.min())
        return first, int(rows.max()) + 1, rows - first


def dequantized_rows(files: GgufParts, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
    """Reads rows of a tensor as float32; one of one dimension is one row."""
    from gguf.quants import dequantize

    file = files.file_of(name)
    kind = file.tensors[name].type
    try:
        values: npt.NDArray[np.float32] = dequantize(file.read_rows(name, start, end), kind)
    except NotImplementedError as error:  # how the library says that it knows no such kind
        raise UnsupportedModelError(
            f"{file.name}: {name!r} is quantized as {kind.name}, which cannot be read"
        ) from error
    return values
