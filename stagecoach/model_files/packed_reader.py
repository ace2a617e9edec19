"""Shows the tensors of a quantized checkpoint as those of a plain one."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.model_files.grouped_rows import GroupedRows
from stagecoach.model_files.model_files import TensorInfo, TensorReader
from stagecoach.model_files.packed_form import PackedForm
from stagecoach.model_files.packed_matrix import LoadedMatrix, PackedMatrix
from stagecoach.model_files.stored_matrix import StoredMatrix, StoredTensors


class _Reader(TensorReader, StoredTensors, Protocol):
    """Reads tensors of plain numbers, and all others as files store them."""


class PackedReader:
    """Implements `TensorReader`; `read` gives the numbers of packed matrices in float32.

    Of the matrix that was read last, what any of its rows needs stays in memory.

    Args:
        reader: Stored tensors.
        matrices: Forms of the packed matrices, and their stored tensors.
    """

    def __init__(
        self, reader: _Reader, matrices: Mapping[str, tuple[PackedForm, Mapping[str, str]]]
    ) -> None:
        self._reader = reader
        self._matrices = matrices
        self._opened: dict[str, PackedMatrix] = {}
        self._loaded: tuple[str, LoadedMatrix] | None = None

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor.

        Raises:
            UnsupportedModelError: A stored tensor is of a type that is not served.
            ModelFilesError: The tensors of a matrix do not fit together.
        """
        if name not in self._matrices:
            return self._reader.info(name)
        matrix = self._matrix(name)
        return TensorInfo("float32", matrix.shape, matrix.code_bits)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows; see `TensorReader.read`."""
        if name not in self._matrices:
            return self._reader.read(name, start, end)
        num_rows, _ = self._matrix(name).shape
        return self._load(name).values(start, num_rows if end is None else end)

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        """Reads rows; see `TensorReader.read_groups`."""
        return self._load(name).groups(start, end)

    def _matrix(self, name: str) -> PackedMatrix:
        if name not in self._opened:
            form, parts = self._matrices[name]
            module = name.rpartition(".")[0]
            self._opened[name] = form.open(StoredMatrix(self._reader, module, parts))
        return self._opened[name]

    def _load(self, name: str) -> LoadedMatrix:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # frees its memory before there is another
            self._loaded = name, self._matrix(name).load()
        return self._loaded[1]
