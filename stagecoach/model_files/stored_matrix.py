"""The stored tensors that make up one packed matrix, checked as they are read."""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.grouped_rows import MAX_SCALE
from stagecoach.model_files.packed_matrix import Floats
from stagecoach.model_files.quantization_settings import INSTEAD

_MAX_ORDERED_COLUMNS = 1 << 22
"""Most columns that have groups of their own; the widest layers of models have 53 thousand."""

INDICES = ("I32", "I64")
"""Types of groups of columns and of sizes."""

FLOATS = ("F32", "F16", "BF16", "F8_E8M0")
"""Types of scales, as safetensors names them."""


class StoredTensors(Protocol):
    """Reads tensors of any type, as files store them."""

    def stored_type(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Name that the format of the files has for the dtype, and shape."""
        ...

    def read_stored(
        self, name: str, start: int = 0, end: int | None = None
    ) -> npt.NDArray[np.generic]:
        """Reads rows, all by default; types that numpy lacks as the integers of their bits."""
        ...

    def num_bytes(self, name: str) -> int:
        """Size of a tensor."""
        ...

    def read_bytes(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads bytes `[start, end)` of a tensor."""
        ...


class StoredMatrix:
    """Reads the stored tensors of one matrix by their names after its module's.

    Args:
        tensors: All stored tensors.
        module: Name of the linear layer.
        parts: Full names of the matrix's tensors, by what follows the module's name.
    """

    def __init__(self, tensors: StoredTensors, module: str, parts: Mapping[str, str]) -> None:
        self.module = module
        self._tensors = tensors
        self._parts = parts

    def __contains__(self, part: str) -> bool:
        return part in self._parts

    def name(self, part: str) -> str:
        """Full name of a tensor.

        Raises:
            ModelFilesError: There is none.
        """
        if part not in self._parts:
            raise ModelFilesError(f"there is no tensor {self.module}.{part}")
        return self._parts[part]

    def dtype(self, part: str) -> str:
        """Name that safetensors has for the dtype of a tensor."""
        return self._tensors.stored_type(self.name(part))[0]

    def any_shape(self, part: str, dtypes: tuple[str, ...]) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            UnsupportedModelError: It has another dtype.
        """
        dtype, shape = self._tensors.stored_type(self.name(part))
        if dtype not in dtypes:
            raise UnsupportedModelError(
                f"{self.name(part)} has type {dtype}, must be {' or '.join(dtypes)}: {INSTEAD}"
            )
        return shape

    def shape(self, part: str, dtypes: tuple[str, ...], num_dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor of so many dimensions, none of them 0.

        Raises:
            UnsupportedModelError: It has another dtype.
            ModelFilesError: It has another number of dimensions, or is empty.
        """
        shape = self.any_shape(part, dtypes)
        if len(shape) != num_dimensions or 0 in shape:
            raise ModelFilesError(
                f"{self.name(part)} has shape {list(shape)}, must have {num_dimensions} dimensions,"
                " none of them 0"
            )
        return shape

    def check_shape(self, part: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Checks dtype and shape of a tensor.

        Raises:
            UnsupportedModelError: It has another dtype.
            ModelFilesError: It has none of the shapes.
        """
        shape = self.any_shape(part, dtypes)
        if shape not in shapes:
            wanted = " or ".join(str(list(each)) for each in dict.fromkeys(shapes))
            raise ModelFilesError(
                f"{self.name(part)} has shape {list(shape)}, which does not fit the others of "
                f"{self.module}: must be {wanted}"
            )

    def check_num_bytes(self, part: str, num_bytes: int) -> None:
        """Checks the size of a tensor whose dtype and shape say nothing.

        Raises:
            ModelFilesError: It has another one.
        """
        found = self._tensors.num_bytes(self.name(part))
        if found != num_bytes:
            raise ModelFilesError(
                f"{self.name(part)} has {found} bytes, {self.module} takes {num_bytes}"
            )

    def read(self, part: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows of a tensor, all by default; see `StoredTensors.read_stored`."""
        return self._tensors.read_stored(self.name(part), start, end)

    def read_bytes(self, part: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads bytes of a tensor."""
        return self._tensors.read_bytes(self.name(part), start, end)

    def scales(self, part: str) -> Floats:
        """Reads a tensor of scales.

        Raises:
            ModelFilesError: One is no finite number that devices keep.
        """
        scales = as_float32(self.read(part), self.dtype(part))
        if not (np.abs(scales) <= MAX_SCALE).all():
            raise ModelFilesError(
                f"{self.name(part)} is damaged: a scale is no number up to {MAX_SCALE:.0f}"
            )
        return scales

    def group_size(self, num_columns: int, num_groups: int, sizes: Collection[int]) -> int:
        """Returns how many columns share a scale.

        Args:
            num_columns: Columns of the matrix.
            num_groups: Scales of a row.
            sizes: What the configuration says; less than 1: whole rows.

        Raises:
            ModelFilesError: No such size makes so many groups.
        """
        for size in sizes:
            columns = num_columns if size < 1 else size
            if num_groups and columns * num_groups == num_columns:
                return columns
        said = " or ".join(map(str, sorted(sizes)))
        raise self.misfit(
            f"group_size {said} does not divide {num_columns} columns into {num_groups} groups, of "
            "which there are scales"
        )

    def scattered(
        self,
        part: str,
        num_columns: int,
        num_groups: int,
        group_size: int,
        *,
        unordered: int | None = None,
    ) -> npt.NDArray[np.int64] | None:
        """Reads the group of every column; None where the next columns have the next group.

        Args:
            part: The tensor that says so; without it they have.
            num_columns: Columns of the matrix.
            num_groups: How many groups there are.
            group_size: Columns of a group.
            unordered: What stands for every column where the next have the next group.

        Raises:
            UnsupportedModelError: The tensor has another dtype than indices have.
            ModelFilesError: It does not fit the matrix, or there is no such group.
        """
        if part not in self:
            return None
        self.check_shape(part, INDICES, (num_columns,))
        if num_columns > _MAX_ORDERED_COLUMNS:  # it is read before the matrix has to fit a model
            raise self.misfit(
                f"{part} has {num_columns} columns, at most {_MAX_ORDERED_COLUMNS} are read"
            )
        groups = self.read(part).astype(np.int64)
        if (groups == unordered).all():
            return None
        if groups.min() < 0 or groups.max() >= num_groups:
            raise self.misfit(
                f"{part} has groups {groups.min()} to {groups.max()}, there are {num_groups}"
            )
        return None if (groups == np.arange(len(groups)) // group_size).all() else groups

    def misfit(self, reason: str) -> ModelFilesError:
        """Says that the tensors contradict each other."""
        return ModelFilesError(f"the tensors of {self.module} do not fit together: {reason}")


def as_float32(numbers: npt.NDArray[np.generic], dtype: str) -> Floats:
    """Widens stored floats.

    Args:
        numbers: As `StoredTensors.read_stored` gives them.
        dtype: Name that safetensors has for their dtype.
    """
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E8M0":  # powers of two; the largest code is no number
        exponents = numbers.astype(np.int32) - 127
        powers = np.ldexp(np.float32(1), np.minimum(exponents, 127)).astype(np.float32)
        return np.where(exponents == 128, np.float32(np.nan), powers)
    return numbers.astype(np.float32)
