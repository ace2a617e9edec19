"""What a stage says of itself crosses the wire whole, and what cannot be read is refused."""

import os
from dataclasses import fields, replace

import pytest

from stagecoach.contract import stage_info_codec
from stagecoach.contract.dtypes import dtype_named
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
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
    dtype="float16",
    hidden_states_dtype="bfloat16",
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
    kv_bytes=1 << 41,
    weight_digests={"layer 2": b"digest"},
    weights_revision="r" * 40,
    adds_noise=True,
    attention="kernel",
    max_graph_seqs=64,
)


def test_every_field_crosses_the_wire() -> None:
    message = stage_info_codec.to_message(INFO)
    assert {field.name for field, _ in message.ListFields()} == {
        field.name for field in fields(StageInfo)
    }
    data = message.SerializeToString()
    read = stage_info_codec.from_message(stage_pb2.GetInfoResponse.FromString(data))
    assert read == INFO


def test_a_stage_says_its_own_version_and_process() -> None:
    values = {field.name: getattr(INFO, field.name) for field in fields(StageInfo)}
    for name in ("protocol_version", "version", "pid", "adds_noise"):
        del values[name]
    info = StageInfo(**values)
    assert (info.protocol_version, info.version) == (PROTOCOL_VERSION, __version__)
    assert (info.pid, info.adds_noise) == (os.getpid(), True)


def test_what_is_set_on_no_message_is_not_taken_from_this_process() -> None:
    message = stage_pb2.GetInfoResponse(
        layers=stage_pb2.LayerRange(start=0, end=1),
        hidden_states_dtype=dtype_named("float32"),
    )
    info = stage_info_codec.from_message(message)
    assert (info.protocol_version, info.version, info.pid, info.adds_noise) == (0, "", 0, False)


def test_an_unknown_dtype_is_refused() -> None:
    message = stage_info_codec.to_message(INFO)
    message.hidden_states_dtype = 99  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match="99") as caught:
        stage_info_codec.from_message(message)
    assert caught.value.field == "hidden_states_dtype"


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
