"""Reads safetensors files, checking the header whole before trusting any of it.

Format: https://github.com/huggingface/safetensors. The reader of that library maps files into
memory, which counts their pages as the process's own and dies of SIGBUS when a file shrinks.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.lfs_pointer import LFS_BEGINNING, refuse_lfs_pointer
from stagecoach.model_files.model_files import TensorInfo
from stagecoach.model_files.weight_digest import SampledTensor

_MAX_HEADER_BYTES = 100_000_000
"""Most bytes of a header, as the format's own library limits it."""

_MAX_DIMENSIONS = 8
"""Most dimensions of a tensor; those of weights have up to five."""

_MAX_ELEMENTS = 1 << 56
"""Most elements that the sizes of a tensor may make, those of 0 left out, as arrays count them."""

_DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "F32": ("float32", np.float32),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.int16),
}
"""Types of plain checkpoints."""

_STORED_TYPES: dict[str, type[np.generic]] = {
    **{name: numpy_type for name, (_, numpy_type) in _DTYPES.items()},
    "F8_E4M3": np.uint8,
    "F8_E8M0": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
}
"""Types that can be read, those of quantized checkpoints too; bits of what numpy does not have."""


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """Name that the format has for the dtype; any, also such as cannot be read here."""
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""
    end: int


class SafetensorsFile:
    """An open safetensors file; a context manager that closes it.

    Args:
        path: The file.
        name_of: Names a tensor by its name in the file, or returns None for one that is not asked
            for.

    Raises:
        ModelFilesError: The file cannot be opened, is truncated, or its header is not sound.
    """

    def __init__(self, path: Path, name_of: Callable[[str], str | None] = str) -> None:
        self.name = path.name
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ModelFilesError(f"{path.name}: {error.strerror}") from error
        try:
            entries = _read_header(self._file.fileno(), path.name)
        except BaseException:
            self._file.close()
            raise
        self.entries = {
            own: entry for name, entry in entries.items() if (own := name_of(name)) is not None
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor.

        Raises:
            UnsupportedModelError: The tensor's type is not one of a plain checkpoint.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"{self.name}: {name} has type {entry.dtype}, must be one of {', '.join(_DTYPES)}"
            )
        return TensorInfo(_DTYPES[entry.dtype][0], entry.shape)

    def sampled(self, name: str) -> SampledTensor:
        """A tensor of any type, to read a few bytes of."""
        entry = self.entries[name]
        return SampledTensor(
            entry.dtype,
            entry.shape,
            entry.end - entry.start,
            window_reader(self._file.fileno(), entry.start, self.name),
        )

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows of a tensor; see `TensorReader.read`."""
        self.info(name)
        return self.read_stored(name, start, end)

    def read_stored(
        self, name: str, start: int = 0, end: int | None = None
    ) -> npt.NDArray[np.generic]:
        """Reads rows `[start, end)` of a tensor of any known type, all by default.

        Raises:
            ModelFilesError: The file ends before the tensor does.
        """
        entry = self.entries[name]
        shape, numpy_type = entry.shape, _STORED_TYPES[entry.dtype]
        if not shape:
            rows = np.empty((), numpy_type)
        else:
            rows = np.empty(((shape[0] if end is None else end) - start, *shape[1:]), numpy_type)
        row_bytes = math.prod(shape[1:]) * rows.itemsize
        read_exactly(self._file.fileno(), rows, entry.start + start * row_bytes, self.name)
        return rows

    def read_bytes(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads bytes `[start, end)` of a tensor of any type.

        Raises:
            ModelFilesError: The file ends before the tensor does.
        """
        found = np.empty(end - start, np.uint8)
        read_exactly(self._file.fileno(), found, self.entries[name].start + start, self.name)
        return found


def read_exactly(
    descriptor: int, target: npt.NDArray[np.generic], offset: int, file_name: str
) -> None:
    """Fills an array from an open file.

    Raises:
        ModelFilesError: The file ends first.
    """
    buffer = target.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < len(buffer):
        count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        if count == 0:
            raise ModelFilesError(
                f"{file_name} is truncated: it ends at byte {offset + filled}, "
                f"a tensor needs bytes up to {offset + len(buffer)}"
            )
        filled += count


def window_reader(descriptor: int, start: int, file_name: str) -> Callable[[int, int], bytes]:
    """Reads, of what begins at `start` of an open file, `length` bytes from `offset` on."""

    def read(offset: int, length: int) -> bytes:
        window = np.empty(length, np.uint8)
        read_exactly(descriptor, window, start + offset, file_name)
        return window.tobytes()

    return read


def _read_header(descriptor: int, name: str) -> dict[str, Entry]:
    file_size = os.fstat(descriptor).st_size
    refuse_lfs_pointer(name, os.pread(descriptor, len(LFS_BEGINNING), 0))
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if file_size < 8 or length > min(_MAX_HEADER_BYTES, file_size - 8):
        raise ModelFilesError(
            f"{name} is truncated or no safetensors file: it has {file_size} bytes, "
            f"its header claims {length}"
        )
    text = np.empty(length, np.uint8)
    read_exactly(descriptor, text, 8, name)
    try:
        header = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{name}: the safetensors header is not JSON") from error
    return _parse_entries(header, 8 + length, file_size, name)


def _parse_entries(header: object, data_start: int, file_size: int, name: str) -> dict[str, Entry]:
    """Checks a parsed header: types, shapes, sizes, bounds, overlaps and gaps."""
    if not isinstance(header, dict):
        raise ModelFilesError(f"{name}: the safetensors header is not an object")
    entries = {
        key: _parse_entry(value, data_start, f"{name}: tensor {key!r}")
        for key, value in header.items()
        if key != "__metadata__"
    }
    reached, previous = data_start, ""
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < reached:
            raise ModelFilesError(f"{name}: tensors {previous!r} and {key!r} overlap")
        if entry.start > reached:
            raise ModelFilesError(
                f"{name}: {entry.start - reached} bytes before tensor {key!r} are of no tensor"
            )
        reached, previous = entry.end, key
    if reached > file_size:
        raise ModelFilesError(
            f"{name} is truncated: it has {file_size} bytes, its tensors need {reached}"
        )
    if reached < file_size:
        raise ModelFilesError(
            f"{name} has {file_size} bytes, its tensors end at byte {reached}: the rest is of none"
        )
    return entries


def _parse_entry(value: object, data_start: int, label: str) -> Entry:
    if not isinstance(value, dict):
        raise ModelFilesError(f"{label} is not an object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _is_sizes(shape) and _is_sizes(offsets)):
        raise ModelFilesError(
            f"{label} has dtype {dtype!r:.80}, shape {shape!r:.80}, offsets {offsets!r:.80}"
        )
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFilesError(f"{label} has data_offsets {offsets!r:.80}")
    if len(shape) > _MAX_DIMENSIONS or math.prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise ModelFilesError(
            f"{label} has shape {shape!r:.80}, must have at most {_MAX_DIMENSIONS} dimensions and "
            f"{_MAX_ELEMENTS} elements"
        )
    num_bytes = offsets[1] - offsets[0]
    known = _STORED_TYPES.get(dtype)
    if known is not None and num_bytes != math.prod(shape) * np.dtype(known).itemsize:
        raise ModelFilesError(f"{label} of type {dtype} and shape {shape} has {num_bytes} bytes")
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value
    )
