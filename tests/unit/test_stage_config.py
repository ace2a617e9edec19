"""What an operator may write, and how it is refused."""

from dataclasses import replace
from typing import Any

import pytest

from stage_server.core.config import StageConfig, parse_bytes
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange

CONFIG = StageConfig(model="demo", layers=LayerRange(0, 10))


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("64kib", 65536),
        ("10B", 10),
        ("123456", 123456),
        (" 1TB ", 10**12),
    ],
)
def test_a_size_is_read_with_decimal_and_binary_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text, field="kv_memory") == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2 GiBs", "1e9", "two", "0x10", "1.2.3MB"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a size") as caught:
        parse_bytes(text, field="kv_memory")
    assert caught.value.field == "kv_memory"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("dtype", "int8"),
        ("engine", "magic"),
        ("device_share", 0.0),
        ("device_share", 1.1),
        ("device_share", float("nan")),
        ("kv_memory_bytes", 0),
        ("kv_block_size", 0),
        ("max_num_seqs", 0),
        ("max_num_seqs", 10**9),
        ("max_num_batched_tokens", 0),
        ("max_model_len", -1),
        ("threads", 0),
        ("drain_grace_s", -0.1),
        ("drain_grace_s", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field.removesuffix("_bytes")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"engine": "emulated"}, "emulate"),
        ({"engine": "emulated", "emulate": "rtx-9999"}, "emulate"),
        ({"emulate": "rtx-3060-12gb"}, "emulate"),
        ({"efficiency": 0.5}, "efficiency"),
        ({"engine": "emulated", "emulate": "rtx-3060-12gb", "efficiency": 0.0}, "efficiency"),
        ({"engine": "emulated", "emulate": "rtx-3060-12gb", "efficiency": 1.01}, "efficiency"),
        ({"engine": "emulated", "emulate": "t4-16gb", "efficiency": float("nan")}, "efficiency"),
        ({"engine": "emulated", "emulate": "rtx-3060-12gb", "device": "cpu"}, "device"),
        ({"engine": "emulated", "emulate": "rtx-3060-12gb", "dtype": "float32"}, "dtype"),
        (
            {"engine": "emulated", "emulate": "rtx-3060-12gb", "weights": "float16"},
            "weights",
        ),
        ({"weights": "q4_k"}, "weights"),
        ({"kv_dtype": "int4"}, "kv_dtype"),
    ],
)
def test_what_an_engine_would_ignore_or_lacks_is_refused(
    settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        replace(CONFIG, **settings)
    assert caught.value.field == field
