"""Arrays and torch tensors <-> `Tensor` messages; the sole owner of the dtype table and byte order.

Every message is checked whole (dtype, rank, sizes, length) before anything is allocated from it.
The coordinator has no torch, so torch is imported only by the two functions that need it.
"""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protos.errors import InvalidArgumentError
from protos.stagecoach.v1 import tensor_pb2

if TYPE_CHECKING:
    import torch

if sys.byteorder != "little":
    raise ImportError("stagecoach.v1 tensors are little-endian; this machine is not")

MAX_RANK = 4


class DTypeSpec(NamedTuple):
    """One row of the dtype table."""

    name: str
    """As `--dtype` and torch name it."""
    itemsize: int
    """Bytes an element."""


DTYPES: dict[tensor_pb2.DType.ValueType, DTypeSpec] = {
    tensor_pb2.DTYPE_FLOAT32: DTypeSpec("float32", 4),
    tensor_pb2.DTYPE_FLOAT16: DTypeSpec("float16", 2),
    tensor_pb2.DTYPE_BFLOAT16: DTypeSpec("bfloat16", 2),
}

_BY_NAME = {spec.name: dtype for dtype, spec in DTYPES.items()}


def dtype_named(name: str) -> tensor_pb2.DType.ValueType:
    """Returns the wire dtype of that name.

    Raises:
        InvalidArgumentError: No such dtype.
    """
    if name not in _BY_NAME:
        raise InvalidArgumentError(
            f"dtype {name!r} is not one of {', '.join(_BY_NAME)}", field="dtype"
        )
    return _BY_NAME[name]


def check(
    message: tensor_pb2.Tensor,
    *,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> None:
    """Checks that a message is a tensor of exactly this dtype and shape.

    Args:
        message: What a peer sent.
        dtype: Expected wire dtype.
        shape: Expected sizes.
        field: Name of the field, for the error.

    Raises:
        InvalidArgumentError: It is not; the message names the field and both values.
    """
    spec = DTYPES[dtype]
    if message.dtype != dtype:
        found = DTYPES[message.dtype].name if message.dtype in DTYPES else f"number {message.dtype}"
        raise InvalidArgumentError(f"{field}: dtype is {found}, expected {spec.name}", field=field)
    if len(message.shape) > MAX_RANK or list(message.shape) != list(shape):
        raise InvalidArgumentError(
            f"{field}: shape is {list(message.shape[: MAX_RANK + 1])}, expected {list(shape)}",
            field=field,
        )
    num_bytes = math.prod(shape) * spec.itemsize
    if len(message.data) != num_bytes:
        raise InvalidArgumentError(
            f"{field}: data has {len(message.data)} bytes, "
            f"{list(shape)} of {spec.name} takes {num_bytes}",
            field=field,
        )


def from_numpy(array: np.ndarray) -> tensor_pb2.Tensor:
    """Writes a float32 or float16 array of any layout; copies once.

    Raises:
        InvalidArgumentError: The array has another dtype or too many dimensions.
    """
    if array.ndim > MAX_RANK:
        raise InvalidArgumentError(f"rank {array.ndim} is above {MAX_RANK}", field="shape")
    dtype = dtype_named(array.dtype.name)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=little.tobytes())


def to_numpy(
    message: tensor_pb2.Tensor,
    *,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> np.ndarray:
    """Reads a float32 or float16 message as a read-only array that shares the message's bytes.

    Raises:
        InvalidArgumentError: As `check`; or the dtype is one that numpy does not have.
    """
    check(message, dtype=dtype, shape=shape, field=field)
    if dtype == tensor_pb2.DTYPE_BFLOAT16:
        raise InvalidArgumentError(f"{field}: bfloat16 cannot be read without torch", field=field)
    return np.frombuffer(message.data, dtype=DTYPES[dtype].name).reshape(shape)


def from_torch(tensor: "torch.Tensor") -> tensor_pb2.Tensor:
    """Writes a tensor of any device and layout; copies once on the CPU, twice from elsewhere.

    Raises:
        InvalidArgumentError: The tensor's dtype is not in the table or it has too many dimensions.
    """
    import torch

    if tensor.ndim > MAX_RANK:
        raise InvalidArgumentError(f"rank {tensor.ndim} is above {MAX_RANK}", field="shape")
    dtype = dtype_named(str(tensor.dtype).removeprefix("torch."))
    # numpy has no bfloat16, so the elements leave torch as bytes.
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return tensor_pb2.Tensor(dtype=dtype, shape=tensor.shape, data=data)


def to_torch(
    message: tensor_pb2.Tensor,
    *,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> "torch.Tensor":
    """Reads a message as a writable CPU tensor of its own memory.

    Raises:
        InvalidArgumentError: As `check`.
    """
    import torch

    check(message, dtype=dtype, shape=shape, field=field)
    torch_dtype: torch.dtype = getattr(torch, DTYPES[dtype].name)
    if math.prod(shape) == 0:
        return torch.empty(tuple(shape), dtype=torch_dtype)
    return torch.frombuffer(bytearray(message.data), dtype=torch_dtype).reshape(tuple(shape))
