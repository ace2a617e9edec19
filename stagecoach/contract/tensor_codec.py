"""Arrays and torch tensors <-> `Tensor` messages; the sole owner of the byte order.

Every message is checked whole (dtype, rank, sizes, length) before anything is allocated from it.
The coordinator has no torch, so torch is imported only by the two functions that need it.
"""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stagecoach.contract.dtypes import DTYPES, dtype_named
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import tensor_pb2

if TYPE_CHECKING:
    import torch

if sys.byteorder != "little":
    raise ImportError("stagecoach.v1 tensors are little-endian; this machine is not")

MAX_RANK = 4


def to_numpy(
    message: tensor_pb2.Tensor,
    *,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> np.ndarray:
    """Reads a float32 or float16 message as a read-only array that shares the message's bytes.

    Raises:
        InvalidArgumentError: It is not exactly of this dtype and shape; names the field and both
            values. Or the dtype is one that numpy does not have.
    """
    data = _checked_data(message, dtype, shape, field)
    if dtype == tensor_pb2.DTYPE_BFLOAT16:
        raise InvalidArgumentError(f"{field}: bfloat16 cannot be read without torch", field=field)
    return np.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def write_torch(tensor: "torch.Tensor", message: tensor_pb2.Tensor) -> None:
    """Writes a tensor into an empty message; copies once on the CPU, twice from elsewhere.

    Raises:
        InvalidArgumentError: The tensor's dtype is not in the table or it has too many dimensions.
    """
    import torch

    if tensor.ndim > MAX_RANK:
        raise InvalidArgumentError(f"rank {tensor.ndim} is above {MAX_RANK}", field="shape")
    message.dtype = dtype_named(str(tensor.dtype).removeprefix("torch."))
    message.shape.extend(tensor.shape)
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        tensor = tensor.view(torch.int16)
    message.data = tensor.detach().cpu().numpy().tobytes()


def to_torch(
    message: tensor_pb2.Tensor,
    *,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> "torch.Tensor":
    """Reads a message as a writable CPU tensor of its own memory.

    Args:
        message: What a peer sent.
        dtype: Expected wire dtype.
        shape: Expected sizes.
        field: Name of the field, for the error.

    Raises:
        InvalidArgumentError: It is not exactly of this dtype and shape; names the field and both
            values.
    """
    import torch

    data = _checked_data(message, dtype, shape, field)
    torch_dtype: torch.dtype = getattr(torch, DTYPES[dtype])
    if not data:
        return torch.empty(tuple(shape), dtype=torch_dtype)
    return torch.frombuffer(bytearray(data), dtype=torch_dtype).view(tuple(shape))


def _checked_data(
    message: tensor_pb2.Tensor,
    dtype: tensor_pb2.DType.ValueType,
    shape: Sequence[int],
    field: str,
) -> bytes:
    """The bytes of a message that is a tensor of exactly this dtype and shape."""
    expected = DTYPES[dtype]
    num_bytes = math.prod(shape) * expected.itemsize
    if message.dtype != dtype:
        found = DTYPES.get(message.dtype, f"number {message.dtype}")
        raise InvalidArgumentError(f"{field}: dtype is {found}, expected {expected}", field=field)
    if message.shape != list(shape):
        raise InvalidArgumentError(
            f"{field}: shape is {list(message.shape[: MAX_RANK + 1])}, expected {list(shape)}",
            field=field,
        )
    data = message.data
    if len(data) != num_bytes:
        raise InvalidArgumentError(
            f"{field}: data has {len(data)} bytes, {list(shape)} of {expected} takes {num_bytes}",
            field=field,
        )
    return data
