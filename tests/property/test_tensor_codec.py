import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract import tensor_codec
from stagecoach.contract.dtypes import DTYPES
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import tensor_pb2
from tests.tensor_messages import from_numpy, from_torch

dtypes = st.sampled_from(sorted(DTYPES))
shapes = st.lists(st.integers(0, 5), max_size=tensor_codec.MAX_RANK)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits, NaN payloads and infinities included, in any dtype, shape and strides."""
    dtype = DTYPES[draw(dtypes)]
    shape = draw(shapes)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=num_bytes, max_size=num_bytes))
    tensor = torch.empty(shape, dtype=getattr(torch, dtype.value))
    if data:
        tensor = torch.frombuffer(bytearray(data), dtype=tensor.dtype).reshape(shape)
    return tensor.permute(draw(st.permutations(range(len(shape)))))


def bits(tensor: torch.Tensor) -> list[int]:
    """The elements in row-major order, one by one, as integers."""
    signed = torch.int32 if tensor.element_size() == 4 else torch.int16
    return [int(element.view(signed)) for element in tensor.reshape(-1)]


@given(tensor=tensors())
def test_a_tensor_survives_bit_for_bit(tensor: torch.Tensor) -> None:
    sent = from_torch(tensor)
    message = tensor_pb2.Tensor.FromString(sent.SerializeToString())
    received = tensor_codec.to_torch(
        message, dtype=message.dtype, shape=list(tensor.shape), field="x"
    )
    assert received.dtype == tensor.dtype
    assert received.shape == tensor.shape
    assert bits(received) == bits(tensor)


@given(tensor=tensors().filter(lambda tensor: tensor.dtype != torch.bfloat16))
def test_numpy_and_torch_write_and_read_the_same(tensor: torch.Tensor) -> None:
    message = from_torch(tensor)
    assert from_numpy(tensor.numpy()) == message
    array = tensor_codec.to_numpy(message, dtype=message.dtype, shape=tensor.shape, field="x")
    assert array.shape == tuple(tensor.shape)
    assert array.tobytes() == message.data


@given(
    claimed=st.integers(0, 6),
    claimed_shape=st.lists(st.integers(0, 2**32 - 1), max_size=6),
    data=st.binary(max_size=64),
    dtype=dtypes,
    shape=shapes,
)
def test_only_an_exact_match_is_read(
    claimed: int,
    claimed_shape: list[int],
    data: bytes,
    dtype: tensor_pb2.DType.ValueType,
    shape: list[int],
) -> None:
    message = tensor_pb2.Tensor(
        dtype=claimed,  # type: ignore[arg-type]
        shape=claimed_shape,
        data=data,
    )
    num_bytes = int(np.prod(shape)) * DTYPES[dtype].itemsize
    if claimed == dtype and claimed_shape == shape and len(data) == num_bytes:
        assert list(tensor_codec.to_torch(message, dtype=dtype, shape=shape, field="x").shape) == (
            shape
        )
    else:
        with pytest.raises(InvalidArgumentError):
            tensor_codec.to_torch(message, dtype=dtype, shape=shape, field="x")


@given(tensor=tensors(), cut=st.integers(1, 8))
def test_a_truncated_message_is_refused(tensor: torch.Tensor, cut: int) -> None:
    message = from_torch(tensor)
    message.data = message.data[:-cut] or b"x" * (len(message.data) + cut)
    with pytest.raises(InvalidArgumentError, match="bytes"):
        tensor_codec.to_torch(message, dtype=message.dtype, shape=list(tensor.shape), field="x")
