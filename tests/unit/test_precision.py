"""Formats of numbers: what `--dtype` stands for, and what rows in them take."""

import pytest

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import DType, Encoding, KvFormat, Precision


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_most_dtypes_are_used_throughout(dtype: str, on_cpu: bool) -> None:
    precision = Precision.of(dtype, on_cpu=on_cpu)
    assert precision == Precision.uniform(DType(dtype))
    assert precision.weights.dtype == precision.wire.dtype == precision.compute
    assert precision.kv.dtype == precision.compute


def test_float16_is_computed_in_float32_on_a_cpu() -> None:
    precision = Precision.of("float16", on_cpu=True)
    assert precision.weights.name == "float16"
    assert precision.compute == precision.kv.dtype == precision.wire.dtype == DType.FLOAT32
    assert Precision.of("float16", on_cpu=False) == Precision.uniform(DType.FLOAT16)


@pytest.mark.parametrize("name", ["int4", "FLOAT16", "auto", ""])
def test_an_unknown_dtype_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Precision.of(name, on_cpu=True)
    assert caught.value.field == "dtype"
    assert caught.value.message == f"dtype {name!r} is not one of float32, float16, bfloat16"


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_plain_numbers_take_their_size_each(dtype: str, itemsize: int) -> None:
    plain = Encoding.plain(DType(dtype))
    assert plain.row_bytes(7) == 7 * itemsize
    assert plain.matrix_bytes(3, 7) == 21 * itemsize


def test_kv_takes_what_its_format_says() -> None:
    sizes = {kv_format: kv_format.head_bytes(128) for kv_format in KvFormat}
    assert sizes == {"float32": 512, "float16": 256, "bfloat16": 256, "int8": 132}
    assert KvFormat.INT8.dtype is None
    assert KvFormat.named("bfloat16").dtype is DType.BFLOAT16
    with pytest.raises(InvalidArgumentError) as caught:
        KvFormat.named("int4")
    assert caught.value.field == "kv_dtype"


def test_blocks_are_whole() -> None:
    q4_0 = Encoding("q4_0", 32, 18)
    assert q4_0.dtype is None
    assert [q4_0.row_bytes(num_columns) for num_columns in (1, 32, 33, 64)] == [18, 18, 36, 36]
    assert q4_0.matrix_bytes(5, 33) == 180
