"""The state of a coordinator: on the wire, as JSON, and of a stage that was never reached."""

import json
from dataclasses import fields, replace

import pytest

from stagecoach.contract import cluster_status_codec
from stagecoach.contract.cluster_status import (
    CoordinatorStatus,
    ModelStatus,
    StageState,
    StageStatus,
)
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, DType, KvFormat, Precision
from stagecoach.contract.status_json import status_json
from stagecoach.v1 import generation_pb2
from tests.stage_infos import create_info

KNOWN = StageStatus(
    index=0,
    address="[::1]:50051",
    state=StageState.READY,
    info=create_info(
        LayerRange(0, 2),
        device="emulated t4-16gb",
        precision=Precision.uniform(DType.FLOAT16),
        emulated=True,
        version="0.0.1",
        pid=12,
        num_free_kv_blocks=90,
        weight_bytes=1 << 40,
        num_weights=1 << 39,
        kv_bytes=1 << 41,
    ),
    pipeline=0,
    num_cached_kv_blocks=3,
)
UNKNOWN = StageStatus(index=1, address="h:2", state=StageState.CONNECTING, info=None)
LOST = replace(KNOWN, address="h:3", state=StageState.LOST, pipeline=None, num_cached_kv_blocks=0)

MODEL = ModelStatus(
    model_id="some-org/some-model",
    names=("mine", "some-org/some-model"),
    ready=True,
    problem="stage h:3 was lost",
    failed=True,
    has_tokenizer=True,
    stages=(KNOWN, LOST, UNKNOWN),
    num_running=1,
    num_waiting=2,
    max_num_seqs=3,
    num_kv_blocks=4,
    num_free_kv_blocks=5,
    num_cached_kv_blocks=6,
    max_model_len=7,
    num_finished=8,
    num_generated_tokens=9,
    num_preemptions=10,
    num_prefix_query_tokens=11,
    num_prefix_hit_tokens=12,
    num_draft_tokens=14,
    num_accepted_draft_tokens=13,
    tokens_per_second=0.3,
)
OTHER = replace(MODEL, model_id="other", names=("other",), ready=False, stages=(UNKNOWN,))
STATUS = replace(CoordinatorStatus.of([MODEL]), version="0.0.2", pid=13)


def test_every_field_crosses_the_wire() -> None:
    message = cluster_status_codec.to_message(STATUS)
    assert {field.name for field, _ in message.ListFields()} == {
        field.name for field in fields(CoordinatorStatus)
    }
    data = message.SerializeToString()
    read = cluster_status_codec.from_message(generation_pb2.GetStatusResponse.FromString(data))
    assert read == STATUS


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stage: setattr(stage, "state", 9),
        lambda stage: stage.ClearField("state"),
        lambda stage: setattr(stage.info, "hidden_states_dtype", 9),
    ],
)
def test_what_this_version_does_not_know_is_incompatible(spoil: object) -> None:
    message = cluster_status_codec.to_message(STATUS)
    assert callable(spoil)
    spoil(message.stages[0])
    with pytest.raises(IncompatibleError, match="cannot be read"):
        cluster_status_codec.from_message(message)


def test_json_has_these_keys_and_values_in_this_order() -> None:
    stage = (
        '{"index": 0, "address": "[::1]:50051", "layers": [0, 2], "state": "ready",'
        ' "device": "emulated t4-16gb", "dtype": "float16", "bits_per_weight": 16.0,'
        ' "kv_dtype": "float16", "emulated": true, "version": "0.0.1", "pid": 12,'
        ' "kv_block_size": 16, "kv_blocks_total": 100, "kv_blocks_free": 90,'
        ' "kv_blocks_cached": 3, "weight_bytes": 1099511627776, "kv_bytes": 2199023255552,'
        ' "pipeline": 0}'
    )
    lost = stage.replace("[::1]:50051", "h:3").replace('"ready"', '"lost"')
    lost = lost.replace('"pipeline": 0', '"pipeline": null')
    lost = lost.replace('"kv_blocks_cached": 3', '"kv_blocks_cached": 0')
    unknown = (
        '{"index": 1, "address": "h:2", "layers": null, "state": "connecting", "device": null,'
        ' "dtype": null, "bits_per_weight": null, "kv_dtype": null, "emulated": false,'
        ' "version": null, "pid": null, "kv_block_size": 0,'
        ' "kv_blocks_total": 0, "kv_blocks_free": 0, "kv_blocks_cached": 0,'
        ' "weight_bytes": 0, "kv_bytes": 0, "pipeline": null}'
    )
    identity = (
        '"model": "some-org/some-model", "names": ["mine", "some-org/some-model"],'
        ' "ready": true, "state": "serving", "problem": "stage h:3 was lost",'
        ' "has_tokenizer": true,'
    )
    load = (
        f' "stages": [{stage}, {lost}, {unknown}], "running": 1,'
        ' "waiting": 2, "max_num_seqs": 3, "kv_blocks_total": 4, "kv_blocks_free": 5,'
        ' "kv_blocks_cached": 6, "max_model_len": 7, "finished": 8, "generated_tokens": 9,'
        ' "preemptions": 10, "prefix_query_tokens": 11, "prefix_hit_tokens": 12,'
        ' "draft_tokens": 14, "accepted_draft_tokens": 13,'
        ' "tokens_per_s": 0.3'
    )
    assert json.dumps(status_json(STATUS)) == (
        f'{{{identity} "version": "0.0.2", "pid": 13,{load}, "models": [{{{identity}{load}}}]}}'
    )


def test_blocks_of_kept_prefixes_are_not_in_use() -> None:
    assert KNOWN.num_used_kv_blocks == 100 - 90 - 3
    assert UNKNOWN.num_used_kv_blocks == 0


def test_people_read_the_forms_of_weights_and_kv() -> None:
    few = create_info(
        LayerRange(0, 2),
        precision=Precision.uniform(DType.FLOAT16)._replace(weights=INT4, kv=KvFormat.INT8),
        weight_bytes=13_000,
        num_weights=20_000,
    )
    assert replace(KNOWN, info=few).forms == "int4 weights of 5.2 bits, int8 KV"
    older = replace(few, num_weights=0)
    assert replace(KNOWN, info=older).forms == "int4 weights, int8 KV"
    assert UNKNOWN.forms == "? weights, ? KV"


def test_of_several_models_each_is_told_and_the_first_stands_for_the_old_fields() -> None:
    both = replace(CoordinatorStatus.of([MODEL, OTHER]), version="0.0.2", pid=13)
    assert (both.model_id, both.stages, both.models) == (
        MODEL.model_id,
        STATUS.stages,
        (MODEL, OTHER),
    )
    assert not both.ready, "the other model is not"
    message = cluster_status_codec.to_message(both)
    assert cluster_status_codec.from_message(message) == both
    content = status_json(both)
    models = content["models"]
    assert isinstance(models, list)
    assert [model["model"] for model in models] == ["some-org/some-model", "other"]
    assert [model["ready"] for model in models] == [True, False]
    assert (content["model"], content["ready"]) == ("some-org/some-model", False)


def test_a_coordinator_that_lists_no_models_has_the_one_of_its_old_fields() -> None:
    message = cluster_status_codec.to_message(STATUS)
    del message.models[:]
    del message.names[:]
    read = cluster_status_codec.from_message(message)
    nameless = replace(MODEL, names=())
    assert read == replace(STATUS, names=(), models=(nameless,))


def test_the_numbers_of_the_old_fields_never_change() -> None:
    known = generation_pb2.GetStatusResponse.DESCRIPTOR.fields
    assert {field.number: field.name for field in known} == {
        1: "model_id",
        2: "ready",
        3: "stages",
        4: "num_running",
        5: "num_waiting",
        6: "num_kv_blocks",
        7: "num_free_kv_blocks",
        8: "max_model_len",
        9: "num_finished",
        10: "num_generated_tokens",
        11: "version",
        12: "pid",
        13: "num_preemptions",
        14: "tokens_per_second",
        15: "has_tokenizer",
        16: "num_cached_kv_blocks",
        17: "num_prefix_query_tokens",
        18: "num_prefix_hit_tokens",
        19: "max_num_seqs",
        20: "names",
        21: "models",
        22: "problem",
        23: "failed",
        24: "num_draft_tokens",
        25: "num_accepted_draft_tokens",
    }


def test_a_cluster_is_emulated_when_a_stage_is() -> None:
    assert STATUS.emulated
    assert not replace(STATUS, stages=(UNKNOWN,)).emulated


def test_the_stages_of_the_pipeline_are_one_server_of_each() -> None:
    assert STATUS.pipeline_stages == (KNOWN, UNKNOWN)
