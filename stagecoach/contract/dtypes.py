"""The dtypes of tensors on the wire: the one table of their numbers, names and sizes."""

from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import tensor_pb2


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
