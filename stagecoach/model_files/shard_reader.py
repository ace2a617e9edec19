"""Reads the tensors of a model whose safetensors files are open."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stagecoach.model_files.grouped_rows import GroupedRows
from stagecoach.model_files.model_files import TensorInfo
from stagecoach.model_files.safetensors_file import SafetensorsFile


class ShardReader:
    """Implements `TensorReader` and `StoredTensors` over open shards.

    Args:
        owners: The open file of each tensor.
    """

    def __init__(self, owners: Mapping[str, SafetensorsFile]) -> None:
        self._owners = owners

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor of plain numbers."""
        return self._owners[name].info(name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows; see `TensorReader.read`."""
        return self._owners[name].read(name, start, end)

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        """Is never called: no tensor is in groups."""
        raise AssertionError(f"{name} is plain, as its info says")

    def stored_type(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name that safetensors has for the dtype, and shape."""
        entry = self._owners[name].entries[name]
        return entry.dtype, entry.shape

    def read_stored(
        self, name: str, start: int = 0, end: int | None = None
    ) -> npt.NDArray[np.generic]:
        """Reads rows; see `StoredTensors.read_stored`."""
        return self._owners[name].read_stored(name, start, end)

    def num_bytes(self, name: str) -> int:
        """Size of a tensor."""
        entry = self._owners[name].entries[name]
        return entry.end - entry.start

    def read_bytes(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads bytes `[start, end)` of a tensor."""
        return self._owners[name].read_bytes(name, start, end)
