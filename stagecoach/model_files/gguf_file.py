"""Reads the header of GGUF files and the bytes of their tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the `gguf` package
takes seconds for a vocabulary of 50 000 tokens and maps the file into memory; this one takes a
tenth of a second and reads. That package still knows the types and dequantizes.
"""

import math
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.lfs_pointer import LFS_BEGINNING, refuse_lfs_pointer
from stagecoach.model_files.safetensors_file import read_exactly, window_reader
from stagecoach.model_files.weight_digest import SampledTensor

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32, _UINT64 = _SCALARS[4], _SCALARS[10]
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


class GgufTensor(NamedTuple):
    """One tensor of a file."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first, as everywhere but in the file."""
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; rows never share a quantization block."""
        return self.num_bytes // self.num_rows

    @property
    def num_rows(self) -> int:
        """Rows; a vector is one. Those of several matrices follow each other."""
        return max(math.prod(self.shape[:-1]), 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        block_size, block_bytes = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block_size * block_bytes


class GgufFile:
    """An open GGUF file; a context manager that closes it.

    Args:
        path: The file.
        string_lists: False: skip lists of strings in the metadata, whose value is then None. A
            vocabulary takes ten megabytes.

    Raises:
        ModelFilesError: The file cannot be opened, is truncated, or its header is not sound.
        UnsupportedModelError: It has another version or byte order, or unknown types.
    """

    def __init__(self, path: Path, *, string_lists: bool = False) -> None:
        self.name = path.name
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ModelFilesError(f"{path.name}: {error.strerror}") from error
        try:
            header = _HeaderReader(self._file, path.name, string_lists=string_lists)
            self.metadata, self.tensors = header.read_all()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def sampled(self, name: str) -> SampledTensor:
        """A tensor of any type, to read a few bytes of."""
        tensor = self.tensors[name]
        return SampledTensor(
            tensor.type.name,
            tensor.shape,
            tensor.num_bytes,
            window_reader(self._file.fileno(), tensor.offset, self.name),
        )

    def read_rows(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads rows `[start, end)` of a tensor as the file stores them.

        Returns:
            uint8 `[end - start, row_bytes]`.

        Raises:
            ModelFilesError: The file has shrunk since it was opened.
        """
        tensor = self.tensors[name]
        rows = np.empty((end - start, tensor.row_bytes), np.uint8)
        offset = tensor.offset + start * tensor.row_bytes
        read_exactly(self._file.fileno(), rows, offset, self.name)
        return rows


class _HeaderReader:
    """Reads the header front to back, never more than the file holds."""

    def __init__(self, file: BinaryIO, name: str, *, string_lists: bool) -> None:
        self._file = file
        self._name = name
        self._string_lists = string_lists
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0

    def read_all(self) -> tuple[dict[str, object], dict[str, GgufTensor]]:
        """Metadata and tensors by name."""
        refuse_lfs_pointer(self._name, os.pread(self._file.fileno(), len(LFS_BEGINNING), 0))
        if self._bytes(4) != b"GGUF":
            raise ModelFilesError(f"{self._name} is no GGUF file")
        version = self._scalar(_UINT32)
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"{self._name} is GGUF version {version} or big-endian, must be one of {_VERSIONS}"
            )
        num_tensors, num_fields = self._scalar(_UINT64), self._scalar(_UINT64)
        metadata: dict[str, object] = {}
        for _ in range(num_fields):
            key = self._string()
            metadata[key] = self._value(self._scalar(_UINT32))
        infos = dict(self._tensor_info() for _ in range(num_tensors))
        return metadata, self._placed(infos, metadata.get("general.alignment"))

    def _bytes(self, count: int) -> bytes:
        # Checked against the size first, so that a false count cannot ask for huge memory.
        data = self._file.read(count) if count <= self._size - self._position else b""
        if len(data) < count:
            raise ModelFilesError(
                f"{self._name} is truncated: it has {self._size} bytes, "
                f"its header needs {self._position + count}"
            )
        self._position += count
        return data

    def _scalar(self, kind: struct.Struct) -> int:
        value: int = kind.unpack(self._bytes(kind.size))[0]
        return value

    def _string(self) -> str:
        return self._bytes(self._scalar(_UINT64)).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar(_UINT32), self._scalar(_UINT64))
        return self._scalars(kind, 1)[0]

    def _array(self, kind: int, count: int) -> list[object] | None:
        if kind == _ARRAY:
            raise UnsupportedModelError(f"{self._name}: its metadata nests arrays")
        if kind != _STRING:
            return self._scalars(kind, count)
        if self._string_lists:
            return [self._string() for _ in range(count)]
        for _ in range(count):
            self._bytes(self._scalar(_UINT64))
        return None

    def _scalars(self, kind: int, count: int) -> list[object]:
        if kind not in _SCALARS:
            raise ModelFilesError(f"{self._name}: metadata of unknown type {kind}")
        scalar = _SCALARS[kind]
        return [value for (value,) in scalar.iter_unpack(self._bytes(count * scalar.size))]

    def _tensor_info(self) -> tuple[str, tuple[int, tuple[int, ...], int]]:
        name = self._string()
        num_dimensions = self._scalar(_UINT32)
        if num_dimensions > _MAX_DIMENSIONS:
            raise ModelFilesError(f"{self._name}: {name!r} has {num_dimensions} dimensions")
        sizes = [self._scalar(_UINT64) for _ in range(num_dimensions)]
        kind, offset = self._scalar(_UINT32), self._scalar(_UINT64)
        return name, (kind, tuple(reversed(sizes)), offset)

    def _placed(
        self, infos: dict[str, tuple[int, tuple[int, ...], int]], alignment: object
    ) -> dict[str, GgufTensor]:
        """Turns offsets within the data into offsets within the file, all checked."""
        if not isinstance(alignment, int) or alignment < 1:
            alignment = _DEFAULT_ALIGNMENT
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        reached = data_start
        for name, (kind, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
            tensor = GgufTensor(self._type(kind, name), shape, data_start + offset)
            block_size, _ = GGML_QUANT_SIZES[tensor.type]
            if shape and shape[-1] % block_size:
                raise ModelFilesError(f"{self._name}: {name!r} of shape {shape} has broken blocks")
            if tensor.offset < reached:
                raise ModelFilesError(f"{self._name}: {name!r} overlaps another tensor")
            reached = tensor.offset + tensor.num_bytes
            if reached > self._size:
                raise ModelFilesError(
                    f"{self._name} is truncated: it has {self._size} bytes, "
                    f"{name!r} needs {reached}"
                )
            tensors[name] = tensor
        return tensors

    def _type(self, kind: int, name: str) -> GGMLQuantizationType:
        try:
            return GGMLQuantizationType(kind)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{self._name}: {name!r} has the unknown type {kind}"
            ) from error
