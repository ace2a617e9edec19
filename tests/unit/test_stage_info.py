"""What a stage says of itself crosses the wire whole, and what cannot be read is refused."""

import os
from dataclasses import fields, replace
from typing import Any

import pytest

from stagecoach.contract import stage_info_codec
from stagecoach.contract.dtypes import dtype_named
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Encoding, KvFormat, Precision
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2
from stagecoach.version import __version__

INFO = StageInfo(
    protocol_version=7,
    model_id="some-org/some-model",
    fingerprint="f" * 64,
    layers=LayerRange(2, 5),
    num_model_layers=6,
    hidden_size=64,
    vocab_size=128,
    precision=Precision(
        weights=Encoding("q4_0", 32, 18),
        compute=DType.FLOAT32,
        kv=KvFormat.FLOAT16,
        wire=Encoding.plain(DType.BFLOAT16),
    ),
    kv_block_size=16,
    num_kv_blocks=100,
    num_free_kv_blocks=99,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=512,
    device="cpu (2 threads)",
    emulated=True,
    version="0.0.1",
    pid=4321,
    weight_bytes=1 << 40,
    num_weights=1 << 41,
    kv_bytes=1 << 41,
    weight_digests={"layer 2": b"digest"},
    weights_revision="r" * 40,
    adds_noise=True,
    answers_prompt_logits=True,
    answers_hidden_sums=True,
    attention="kernel",
    max_graph_seqs=64,
)


PRECISION = {
    *("dtype", "hidden_states_dtype", "weights_encoding", "compute_dtype", "kv_dtype"),
}
"""Fields of the message for one field of `StageInfo`."""


def test_every_field_crosses_the_wire() -> None:
    message = stage_info_codec.to_message(INFO)
    written = {field.name for field, _ in message.ListFields()}
    assert written - PRECISION == {field.name for field in fields(StageInfo)} - {"precision"}
    assert written >= PRECISION
    data = message.SerializeToString()
    read = stage_info_codec.from_message(stage_pb2.GetInfoResponse.FromString(data))
    assert read == INFO
    assert read.bits_per_weight == 4


def test_a_stage_says_its_own_version_and_process() -> None:
    values = {field.name: getattr(INFO, field.name) for field in fields(StageInfo)}
    answers = ("adds_noise", "answers_prompt_logits", "answers_hidden_sums")
    for name in ("protocol_version", "version", "pid", *answers):
        del values[name]
    info = StageInfo(**values)
    assert (info.protocol_version, info.version) == (PROTOCOL_VERSION, __version__)
    assert info.pid == os.getpid()
    assert all(getattr(info, name) for name in answers)


def test_what_is_set_on_no_message_is_not_taken_from_this_process() -> None:
    message = stage_pb2.GetInfoResponse(
        layers=stage_pb2.LayerRange(start=0, end=1),
        dtype="float16",
        hidden_states_dtype=dtype_named("float32"),
    )
    info = stage_info_codec.from_message(message)
    assert (info.protocol_version, info.version, info.pid, info.adds_noise) == (0, "", 0, False)
    assert not info.answers_prompt_logits
    assert not info.answers_hidden_sums
    assert info.precision == Precision.of("float16", on_cpu=True)


def test_an_unknown_dtype_is_refused() -> None:
    message = stage_info_codec.to_message(INFO)
    message.hidden_states_dtype = 99  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match="99") as caught:
        stage_info_codec.from_message(message)
    assert caught.value.field == "hidden_states_dtype"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"compute_dtype": "float8"}, "dtype"),
        ({"kv_dtype": "int3"}, "kv_dtype"),
        ({"weights_encoding": stage_pb2.Encoding(name="q4_0", block_size=32)}, "weights_encoding"),
        ({"weights_encoding": stage_pb2.Encoding(name="f", block_bytes=2)}, "weights_encoding"),
    ],
)
def test_an_unknown_format_is_refused(change: dict[str, Any], field: str) -> None:
    message = stage_info_codec.to_message(INFO)
    message.ClearField("weights_encoding")
    message.dtype = "float16"
    message.MergeFrom(stage_pb2.GetInfoResponse(**change))
    with pytest.raises(InvalidArgumentError) as caught:
        stage_info_codec.from_message(message)
    assert caught.value.field == field


def test_an_empty_layer_range_is_refused() -> None:
    message = stage_info_codec.to_message(INFO)
    message.layers.end = message.layers.start
    with pytest.raises(InvalidArgumentError, match="2:2") as caught:
        stage_info_codec.from_message(message)
    assert caught.value.field == "layers"


def test_the_ends_of_the_model_are_known_by_their_layers() -> None:
    first, last = replace(INFO, layers=LayerRange(0, 2)), replace(INFO, layers=LayerRange(5, 6))
    assert (first.is_first, first.is_last) == (True, False)
    assert (INFO.is_first, INFO.is_last) == (False, False)
    assert (last.is_first, last.is_last) == (False, True)
