"""The dtypes of torch that formats of numbers stand for."""

import torch

from stagecoach.contract.precision import DType, Encoding

_TORCH_DTYPES = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
}


def torch_dtype(format_: DType | Encoding) -> torch.dtype:
    """Returns the dtype of tensors that hold such numbers; an encoding is of plain ones."""
    dtype = format_.dtype if isinstance(format_, Encoding) else format_
    assert dtype is not None, f"{format_} is no dtype of torch"
    return _TORCH_DTYPES[dtype]
