import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from stagecoach.contract import tensor_codec
from stagecoach.contract.dtypes import DTYPES
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import tensor_pb2
from tests.tensor_messages import from_numpy, from_torch

FLOAT32 = tensor_pb2.DTYPE_FLOAT32
FLOAT16 = tensor_pb2.DTYPE_FLOAT16
BFLOAT16 = tensor_pb2.DTYPE_BFLOAT16

# 1.0, -2.0 and 0.5 as little-endian IEEE 754 and bfloat16.
GOLDEN = [
    (FLOAT32, bytes.fromhex("0000803f000000c00000003f")),
    (FLOAT16, bytes.fromhex("003c00c00038")),
    (BFLOAT16, bytes.fromhex("803f00c0003f")),
]


@pytest.mark.parametrize(("dtype", "data"), GOLDEN)
def test_golden_bytes_of_torch(dtype: tensor_pb2.DType.ValueType, data: bytes) -> None:
    torch_dtype = getattr(torch, DTYPES[dtype].value)
    tensor = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch_dtype)
    message = from_torch(tensor)
    assert message == tensor_pb2.Tensor(dtype=dtype, shape=[1, 3], data=data)
    back = tensor_codec.to_torch(message, dtype=dtype, shape=[1, 3], field="x")
    assert back.dtype == torch_dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(("dtype", "data"), GOLDEN[:2])
def test_golden_bytes_of_numpy(dtype: tensor_pb2.DType.ValueType, data: bytes) -> None:
    array = np.array([[1.0, -2.0, 0.5]], dtype=DTYPES[dtype].value)
    message = from_numpy(array)
    assert message == tensor_pb2.Tensor(dtype=dtype, shape=[1, 3], data=data)
    assert np.array_equal(
        tensor_codec.to_numpy(message, dtype=dtype, shape=[1, 3], field="x"), array
    )


def test_golden_bytes_of_the_message() -> None:
    tensor = torch.tensor([[1.0, -2.0]], dtype=torch.float16)
    encoded = from_torch(tensor).SerializeToString(deterministic=True)
    assert encoded == bytes.fromhex("0802120201021a04003c00c0")


def test_rows_are_written_in_order_whatever_the_strides() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).t()
    assert not tensor.is_contiguous()
    expected = from_torch(tensor.contiguous())
    assert from_torch(tensor) == expected
    assert from_numpy(tensor.numpy()) == expected


def test_a_tensor_that_needs_gradients_is_written() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert from_torch(tensor).shape == [2]


def test_a_read_tensor_is_writable_and_independent_of_the_message() -> None:
    message = from_torch(torch.zeros(4))
    tensor = tensor_codec.to_torch(message, dtype=FLOAT32, shape=[4], field="x")
    tensor += 1
    assert not any(message.data)


def test_a_read_array_is_read_only() -> None:
    message = from_numpy(np.zeros(4, dtype=np.float32))
    array = tensor_codec.to_numpy(message, dtype=FLOAT32, shape=[4], field="x")
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (tensor_pb2.Tensor(), "dtype is number 0, expected float16"),
        (tensor_pb2.Tensor(shape=[2, 3], data=bytes(12)), "dtype is number 0"),
        (
            tensor_pb2.Tensor(dtype=99, shape=[2, 3], data=bytes(12)),  # type: ignore[arg-type]
            "dtype is number 99",
        ),
        (
            tensor_pb2.Tensor(dtype=BFLOAT16, shape=[2, 3], data=bytes(12)),
            "dtype is bfloat16, expected float16",
        ),
        (tensor_pb2.Tensor(dtype=FLOAT16, data=bytes(12)), r"shape is \[\], expected \[2, 3\]"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[3, 2], data=bytes(12)), r"shape is \[3, 2\]"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[6], data=bytes(12)), r"shape is \[6\]"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[1, 2, 3], data=bytes(12)), "shape is"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[1] * 1000, data=bytes(2)), r"\[1, 1, 1, 1, 1\]"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[2, 3]), "data has 0 bytes.* takes 12"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[2, 3], data=bytes(11)), "11 bytes.* takes 12"),
        (tensor_pb2.Tensor(dtype=FLOAT16, shape=[2, 3], data=bytes(13)), "13 bytes.* takes 12"),
    ],
)
def test_a_malformed_message_is_refused_by_both_readers(
    message: tensor_pb2.Tensor, complaint: str
) -> None:
    for read in (tensor_codec.to_torch, tensor_codec.to_numpy):
        with pytest.raises(InvalidArgumentError, match=f"^hidden_states: .*{complaint}") as caught:
            read(message, dtype=FLOAT16, shape=[2, 3], field="hidden_states")
        assert caught.value.field == "hidden_states"


def test_a_huge_claim_is_refused_before_anything_is_allocated() -> None:
    claim = [2**16, 2**15]
    message = tensor_pb2.Tensor(dtype=FLOAT32, shape=claim, data=b"1234")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgumentError, match="data has 4 bytes"):
            tensor_codec.to_torch(message, dtype=FLOAT32, shape=claim, field="x")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_bfloat16_needs_torch_to_be_read() -> None:
    message = from_torch(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(InvalidArgumentError, match="bfloat16") as caught:
        tensor_codec.to_numpy(message, dtype=BFLOAT16, shape=[2], field="full")
    assert caught.value.field == "full"


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_a_torch_dtype_that_is_not_in_the_table_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidArgumentError, match=r"is not one of float32, float16, bfloat16"):
        from_torch(torch.zeros(2, dtype=dtype))


def test_five_dimensions_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="rank 5"):
        from_torch(torch.zeros(1, 1, 1, 1, 1))


def test_the_codec_is_usable_without_torch() -> None:
    program = (
        "import sys; from stagecoach.contract import tensor_codec as codec;"
        "from stagecoach.v1.tensor_pb2 import DTYPE_FLOAT32 as dtype, Tensor;"
        "message = Tensor(dtype=dtype, shape=[2], data=bytes(8));"
        "codec.to_numpy(message, dtype=dtype, shape=[2], field='x');"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
