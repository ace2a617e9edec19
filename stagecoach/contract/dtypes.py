"""The dtypes of tensors on the wire: the one table of their numbers."""

from stagecoach.contract.precision import DType
from stagecoach.v1 import tensor_pb2

DTYPES: dict[tensor_pb2.DType.ValueType, DType] = {
    tensor_pb2.DTYPE_FLOAT32: DType.FLOAT32,
    tensor_pb2.DTYPE_FLOAT16: DType.FLOAT16,
    tensor_pb2.DTYPE_BFLOAT16: DType.BFLOAT16,
}

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def dtype_named(name: str) -> tensor_pb2.DType.ValueType:
    """Returns the wire dtype of that name.

    Raises:
        InvalidArgumentError: No such dtype.
    """
    return _NUMBERS[DType.named(name)]
