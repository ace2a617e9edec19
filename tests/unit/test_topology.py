"""Stages that do not make one model are refused, and the refusal says which stage and why."""

from dataclasses import replace
from typing import Any

import pytest

from coordinator.pipeline.replica import check_fits, narrowest
from coordinator.pipeline.topology import Topology
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, DType, KvFormat, Precision
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo
from tests.stage_infos import create_info


def create_stage(layers: str, **changes: Any) -> tuple[str, StageInfo]:
    values = {"num_model_layers": 6, "hidden_size": 64, "vocab_size": 128, **changes}
    info = create_info(LayerRange.parse(layers), **values)
    return f"host:{info.layers.start}", info


@pytest.mark.parametrize("ranges", [["0:6"], ["0:1", "1:6"], ["0:2", "2:3", "3:6"]])
def test_ranges_that_cover_the_model_are_accepted(ranges: list[str]) -> None:
    topology = Topology.of([create_stage(layers) for layers in ranges])
    assert [str(info.layers) for info in topology.infos] == ranges


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (["1:6"], "stage 0 at host:1 .*1:6.* leaves a gap after .* end at layer 0"),
        (["0:2", "3:6"], "stage 1 at host:3 .* leaves a gap after .* end at layer 2"),
        (["0:3", "2:6"], "stage 1 at host:2 .* overlaps .* end at layer 3"),
        (["0:2", "2:5"], "stage 1 at host:2 .* is the last, but the model has 6 layers"),
    ],
)
def test_gaps_and_overlaps_are_refused(ranges: list[str], message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        Topology.of([create_stage(layers) for layers in ranges])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "e" * 64}, "model fingerprint is e+, expected f+"),
        ({"protocol_version": 9}, f"protocol version is 9, expected {PROTOCOL_VERSION}"),
        ({"hidden_size": 32}, "hidden size is 32, expected 64"),
        (
            {"precision": Precision.uniform(DType.FLOAT16)},
            "hidden states dtype is float16, expected float32",
        ),
        ({"kv_block_size": 32}, "KV block size is 32, expected 16"),
        ({"num_model_layers": 7}, "number of layers is 7, expected 6"),
    ],
)
def test_stages_of_different_kinds_are_refused(change: dict[str, Any], message: str) -> None:
    stages = [create_stage("0:3"), create_stage("3:6", **change)]
    with pytest.raises(IncompatibleError, match=f"stage 1 at host:3 .*{message}"):
        Topology.of(stages)


def digests(*parts: str, of: bytes = b"ours") -> dict[str, bytes]:
    return dict.fromkeys(parts, of)


def test_stages_that_hold_other_weights_of_one_shape_are_refused() -> None:
    every = ["embedding", "head", "norm", *(f"layer {i}" for i in range(6))]
    stages = [
        create_stage("0:3", weight_digests=digests(*every)),
        create_stage("3:6", weight_digests=digests(*every[:-2], of=b"theirs")),
    ]
    with pytest.raises(IncompatibleError) as caught:
        Topology.of(stages)
    assert caught.value.message == (
        "stage host:3 (layers 3:6) and stage host:0 (layers 0:3) hold other weights of one shape: "
        "they differ in embedding, head, norm, layers 0:4; give both the same model"
    )


def test_stages_agree_in_the_parts_that_both_have_and_together_know_all() -> None:
    stages = [
        create_stage("0:3", weight_digests=digests("embedding", "layer 2", "layer 3")),
        create_stage("3:6", weight_digests=digests("layer 3", "layer 5")),
        create_stage("6:7", num_model_layers=7),
    ]
    stages = [(address, replace(info, num_model_layers=7)) for address, info in stages]
    topology = Topology.of(stages)
    known = digests("embedding", "layer 2", "layer 3", "layer 5")
    assert [info.weight_digests for info in topology.infos] == [known] * 3
    check_fits("a", topology.infos[2], replace(stages[2][1], weight_digests=known))
    for part in known:
        wrong = replace(stages[2][1], weight_digests=digests(part, of=b"theirs"))
        with pytest.raises(IncompatibleError, match=f"differ in .*{part.split()[-1]}"):
            check_fits("a", topology.infos[2], wrong, is_back=True)


def test_revisions_of_a_hub_decide_only_between_stages_without_a_part_in_common() -> None:
    stages = [
        create_stage("0:3", weight_digests=digests("layer 2"), weights_revision="one"),
        create_stage("3:6", weight_digests=digests("layer 3"), weights_revision="other"),
    ]
    with pytest.raises(IncompatibleError, match=r"host:3 .* host:0 .*another revision .*@REVISION"):
        Topology.of(stages)
    address, info = stages[1]
    Topology.of([stages[0], (address, replace(info, weights_revision=""))])
    Topology.of([stages[0], (address, replace(info, weight_digests=digests("layer 2")))])


@pytest.mark.parametrize("num_stages", [0, 17])
def test_one_to_sixteen_stages_are_allowed(num_stages: int) -> None:
    stages = [create_stage(f"{i}:{i + 1}", num_model_layers=20) for i in range(num_stages)]
    with pytest.raises(InvalidArgumentError, match=f"{num_stages} stages, must be 1 to 16"):
        Topology.of(stages)


def test_the_smallest_stage_sets_every_limit() -> None:
    topology = Topology.of(
        [
            create_stage("0:3", num_kv_blocks=50, max_num_seqs=9),
            create_stage("3:6", max_model_len=100, max_num_batched_tokens=64),
        ]
    )
    assert topology.num_kv_blocks == 50
    assert topology.max_num_seqs == 8
    assert topology.max_model_len == 100
    assert topology.max_num_batched_tokens == 64


@pytest.mark.parametrize("what", ["answers_prompt_logits", "answers_hidden_sums"])
def test_a_stage_tells_of_prompts_when_every_server_of_it_does(what: str) -> None:
    knows = create_info(LayerRange(2, 4), **{what: True})
    is_older = create_info(LayerRange(2, 4), **{what: False})
    first = create_info(LayerRange(0, 2))
    for servers, expected in (([knows, knows], True), ([knows, is_older], False)):
        stage = narrowest(servers)
        assert getattr(Topology.of([("a", first), ("b", stage)]), what) == expected
        check_fits("b", stage, knows)
    check_fits("b", is_older, is_older)
    with pytest.raises(IncompatibleError, match=f"{what} False, needs at least True"):
        check_fits("b", knows, is_older, is_back=True)


FEW = Precision.uniform(DType.FLOAT32)._replace(weights=INT4)


def test_stages_that_keep_numbers_in_unequal_formats_are_named() -> None:
    stages = [
        create_stage("0:2", precision=FEW),
        create_stage("2:4", precision=FEW._replace(kv=KvFormat.INT8)),
        create_stage("4:6"),
    ]
    assert Topology.of(stages).unequal_forms == {
        "weights": "int4: host:0, host:2; float32: host:4",
        "kv": "float32: host:0, host:4; int8: host:2",
    }
    assert Topology.of([create_stage("0:3"), create_stage("3:6")]).unequal_forms == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"precision": FEW}, "has precision int4 weights, float32 arithmetic, .* expected float32"),
        (
            {"precision": Precision.uniform(DType.FLOAT32)._replace(kv=KvFormat.INT8)},
            "has precision float32 weights, float32 arithmetic, int8 KV, .* expected float32",
        ),
        ({"weight_bytes": 700}, r"has weights of 5\.60 bits each, expected 5\.20: .* --weights"),
    ],
)
def test_servers_of_one_stage_must_keep_numbers_alike(change: dict[str, Any], told: str) -> None:
    """A request may go on at any of them, and its text must not depend on where."""
    values = {"weight_bytes": 650, "num_weights": 1000}
    _, expected = create_stage("0:3", **values)
    check_fits("host:9", expected, expected)
    check_fits("host:9", expected, create_stage("0:3", **{**values, "weight_bytes": 651})[1])
    _, other = create_stage("0:3", **{**values, **change})
    with pytest.raises(IncompatibleError, match=f"stage host:9 {told}"):
        check_fits("host:9", expected, other)
