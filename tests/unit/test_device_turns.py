"""`up --device`: which stage takes which card, and how much of it."""

import pytest

from coordinator.cli.cluster.cluster import Cluster, ClusterPlan, ModelPlan
from coordinator.cli.cluster.device_turns import DeviceTurns
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange


def arguments(devices: str | None, num_servers: int) -> list[str]:
    turns = DeviceTurns.parse(devices, num_servers)
    return [" ".join(turns.arguments(server)) for server in range(num_servers)]


def test_stages_take_one_card_each_by_turns() -> None:
    assert arguments("cuda:0,cuda:1", 2) == ["--device cuda:0", "--device cuda:1"]


def test_stages_on_one_card_get_equal_shares_of_it() -> None:
    assert arguments("cuda:0,cuda:1", 3) == [
        "--device cuda:0 --device-share 0.5",
        "--device cuda:1",
        "--device cuda:0 --device-share 0.5",
    ]
    assert arguments("cuda:0, cuda", 2) == [
        "--device cuda:0 --device-share 0.5",
        "--device cuda --device-share 0.5",
    ]


@pytest.mark.parametrize("num_servers", range(2, 17))
def test_shares_never_add_up_to_more_than_the_card(num_servers: int) -> None:
    shares = [float(text.split()[-1]) for text in arguments(None, num_servers)]
    assert 0.99 < sum(shares) <= 1


def test_what_is_not_said_is_left_to_each_stage() -> None:
    assert arguments(None, 1) == [""]
    assert arguments(None, 2) == ["--device-share 0.5"] * 2
    assert arguments("cpu", 1) == ["--device cpu"]


def test_servers_of_several_models_share_the_cards_and_know_their_layers() -> None:
    layers = (LayerRange(0, 3), LayerRange(3, 6))
    plan = ClusterPlan(
        models=tuple(
            ModelPlan(model=name, names=(name,), layers=layers, num_replicas=1) for name in "ab"
        ),
        devices=DeviceTurns.parse("cuda:0,cuda:1", 4),
        grpc_port=0,
        http_port=None,
        stage_options=(),
        coordinator_options=(),
        drain_grace_s=0,
    )
    cluster = Cluster(plan, relay_logs=False)
    assert cluster.names == [
        f"{name}, stage {index} (layers {each})"
        for name in "ab"
        for index, each in enumerate(layers)
    ]
    for number, (name, each, device) in enumerate(
        [
            ("a", "0:3", "cuda:0"),
            ("a", "3:6", "cuda:1"),
            ("b", "0:3", "cuda:0"),
            ("b", "3:6", "cuda:1"),
        ]
    ):
        command = cluster._stage_arguments(number, "127.0.0.1:0")
        flags = ("--model", "--layers", "--device", "--device-share")
        assert [command[command.index(flag) + 1] for flag in flags] == [name, each, device, "0.5"]


def test_models_of_one_name_are_refused_before_anything_starts() -> None:
    one = ModelPlan(model="demo", layers=(LayerRange(0, 30),), num_replicas=1)
    with pytest.raises(InvalidArgumentError, match="is of two models"):
        ClusterPlan(
            models=(one, one),
            grpc_port=0,
            http_port=None,
            stage_options=(),
            coordinator_options=(),
            drain_grace_s=0,
        )


@pytest.mark.parametrize("text", ["", "cuda:0,", ",", "cuda:0,,cuda:1"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="such as cuda:0,cuda:1") as caught:
        DeviceTurns.parse(text, 2)
    assert caught.value.field == "device"


def test_every_server_of_a_cluster_has_its_own_turn() -> None:
    plan = ClusterPlan(
        models=(
            ModelPlan(model="demo", layers=(LayerRange(0, 15), LayerRange(15, 30)), num_replicas=2),
        ),
        devices=DeviceTurns.parse("cuda:0,cuda:1,cuda:2,cuda:3", 4),
        grpc_port=0,
        http_port=None,
        stage_options=(),
        coordinator_options=(),
        drain_grace_s=0,
    )
    cluster = Cluster(plan, relay_logs=False)
    commands = [cluster._stage_arguments(number, "127.0.0.1:0") for number in range(4)]
    taken = [command[command.index("--device") + 1] for command in commands]
    assert taken == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
