"""Tensor messages made from arrays and tensors, for tests of who reads them."""

import numpy as np
import torch

from stagecoach.contract import tensor_codec
from stagecoach.contract.dtypes import dtype_named
from stagecoach.v1 import tensor_pb2


def from_torch(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    message = tensor_pb2.Tensor()
    tensor_codec.write_torch(tensor, message)
    return message


def from_numpy(array: np.ndarray) -> tensor_pb2.Tensor:
    """Written by numpy alone: a twin of the writer that the stages have."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return tensor_pb2.Tensor(
        dtype=dtype_named(array.dtype.name), shape=array.shape, data=little.tobytes()
    )
