"""Matrices of safetensors checkpoints whose numbers lie packed in several stored tensors."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.grouped_rows import GroupedRows, rounded_rows

Words = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

GROUP_MULTIPLE = 32
"""Columns of a group whose codes devices keep are a multiple of so many."""

_ROUNDED_BITS = 8


class LoadedMatrix(Protocol):
    """Gives rows of a matrix of which everything but the codes is in memory."""

    def values(self, start: int, end: int) -> Floats:
        """The numbers of rows `[start, end)`, exactly."""
        ...

    def groups(self, start: int, end: int) -> GroupedRows:
        """The same rows in codes of the bits that the matrix says."""
        ...


class PackedMatrix(NamedTuple):
    """A matrix as the headers of its stored tensors describe it."""

    shape: tuple[int, int]
    """Rows are outputs, columns inputs."""
    code_bits: int | None
    """As `TensorInfo.code_bits`."""
    load: Callable[[], LoadedMatrix]
    """Reads what is needed for any row."""


class Scales(NamedTuple):
    """The scales of the rows of a matrix."""

    values: Floats
    """`[num_rows, num_groups]`."""
    group_size: int
    """Columns that share a scale; the last group of a row may have fewer."""
    group_of_column: npt.NDArray[np.int64] | None = None
    """Which scale each column has; None: the next columns have the next scale."""

    def spread(self, each: Floats, num_columns: int) -> Floats:
        """Repeats what groups have, `[num_rows, num_groups]`, for every column."""
        if each.shape[1] == 1:
            return each
        if self.group_of_column is not None:
            chosen: Floats = each[:, self.group_of_column]
            return chosen
        return np.repeat(each, self.group_size, axis=1)[:, :num_columns]


class IntegerMatrix:
    """Implements `LoadedMatrix` for numbers `scale * (code - zero)`.

    Args:
        codes: Reads the codes of rows, uint8 `[num_rows, num_columns]`.
        num_bits: Bits of a code.
        scales: Scales of all rows.
        zeros: Codes of 0, uint8 as the scales; None: the middle code everywhere.
    """

    def __init__(
        self,
        codes: Callable[[int, int], Codes],
        num_bits: int,
        scales: Scales,
        zeros: Codes | None,
    ) -> None:
        self._codes = codes
        self._middle = 1 << (num_bits - 1)
        self._scales = scales
        self._zeros = zeros

    def values(self, start: int, end: int) -> Floats:
        """Multiplies in float32."""
        return self._numbers(self._codes(start, end), start, end)

    def groups(self, start: int, end: int) -> GroupedRows:
        """Keeps the codes where groups are kept; rounds the numbers otherwise."""
        scales, zeros = self._scales, self._zeros_of(start, end)
        codes = self._codes(start, end)
        if not _is_kept(scales.group_size, codes.shape[1], scales.group_of_column is not None):
            return rounded_rows(self._numbers(codes, start, end))
        size = scales.values.shape[1]
        repeats = codes.shape[1] // GROUP_MULTIPLE // size
        steps = scales.values[start:end]
        offsets = None if zeros is None else steps * (self._middle - zeros)
        return GroupedRows(
            codes,
            self._middle,
            np.repeat(steps, repeats, axis=1),
            None if offsets is None else np.repeat(offsets, repeats, axis=1),
        )

    def _numbers(self, codes: Codes, start: int, end: int) -> Floats:
        scales, num_columns = self._scales, codes.shape[1]
        zeros = self._zeros_of(start, end)
        signed = codes.astype(np.float32)
        signed -= np.float32(self._middle) if zeros is None else scales.spread(zeros, num_columns)
        signed *= scales.spread(scales.values[start:end], num_columns)
        return signed

    def _zeros_of(self, start: int, end: int) -> Floats | None:
        return None if self._zeros is None else self._zeros[start:end].astype(np.float32)


class NumberMatrix:
    """Implements `LoadedMatrix` for numbers that are no multiples of a scale.

    Args:
        name: Name of the matrix, for errors.
        read: Reads the numbers of rows.
    """

    def __init__(self, name: str, read: Callable[[int, int], Floats]) -> None:
        self._name = name
        self._read = read

    def values(self, start: int, end: int) -> Floats:
        """Reads rows.

        Raises:
            ModelFilesError: There is something in them that is no number.
        """
        numbers = self._read(start, end)
        if not np.isfinite(numbers).all():
            raise ModelFilesError(f"{self._name} is damaged: an element is no finite number")
        return numbers

    def groups(self, start: int, end: int) -> GroupedRows:
        """Rounds the numbers."""
        return rounded_rows(self.values(start, end))


def kept_bits(
    num_bits: int, group_size: int, num_columns: int, *, is_scattered: bool = False
) -> int | None:
    """Returns the bits of the codes in which `IntegerMatrix` gives rows.

    Args:
        num_bits: Bits of the stored codes.
        group_size: Columns that share a scale.
        num_columns: Columns of the matrix.
        is_scattered: Whether columns of a group lie apart.

    Returns:
        As `TensorInfo.code_bits`.
    """
    if _is_kept(group_size, num_columns, is_scattered):
        return num_bits
    return rounded_bits(num_columns)


def rounded_bits(num_columns: int) -> int | None:
    """Returns the bits of codes that numbers are rounded to; None for rows of no whole groups."""
    return None if num_columns % GROUP_MULTIPLE else _ROUNDED_BITS


def _is_kept(group_size: int, num_columns: int, is_scattered: bool) -> bool:
    divides = num_columns % group_size == 0 and group_size % GROUP_MULTIPLE == 0
    return divides and not is_scattered


def unpacked(words: Words, num_bits: int) -> Codes:
    """Unpacks codes that follow each other in the bits of words, the lowest bits first.

    Args:
        words: int32 `[..., num_words]`, contiguous.
        num_bits: Bits of a code, 1 to 8.

    Returns:
        uint8 `[..., 32 * num_words // num_bits]`.
    """
    packed = words.astype("<i4", copy=False).view(np.uint8)
    if 8 % num_bits == 0:
        shifts = np.arange(0, 8, num_bits, dtype=np.uint8)
        codes = packed[..., None] >> shifts & np.uint8((1 << num_bits) - 1)
        return codes.reshape(*packed.shape[:-1], -1)
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    num_codes = bits.shape[-1] // num_bits
    by_code = bits[..., : num_codes * num_bits].reshape(*bits.shape[:-1], num_codes, num_bits)
    return np.packbits(by_code, axis=-1, bitorder="little")[..., 0]


def whole_codes(numbers: npt.NDArray[np.generic]) -> Codes:
    """Returns the codes of whole numbers of 8 bits, of which that of 0 is the middle one."""
    return numbers.view(np.uint8) ^ np.uint8(128)
