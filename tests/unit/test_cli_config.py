"""What an operator may set on a coordinator."""

import pytest

from coordinator.config import ClusterConfig, parse_stages
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError


def test_the_servers_of_each_stage_are_read() -> None:
    assert parse_stages(["a:1", "b:2 , [::1]:3"]) == (
        (Address("a", 1),),
        (Address("b", 2), Address("::1", 3)),
    )


@pytest.mark.parametrize("text", ["", "a:1,", "a:1,b", "::1:1"])
def test_what_is_no_address_of_a_stage_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_stages(["a:1", text])
    assert caught.value.field == "stage"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ""}, "model"),
        ({"stages": ()}, "stage"),
        ({"stages": parse_stages(f"h:{port}" for port in range(1, 18))}, "stage"),
        ({"stages": parse_stages(["h:1", "h:1"])}, "stage"),
        ({"stages": parse_stages(["h:1,h:1"])}, "stage"),
        ({"stages": parse_stages(["h:0"])}, "stage"),
        ({"served_model_names": ("",)}, "served_model_name"),
        ({"served_model_names": ("a", "a")}, "served_model_name"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"max_num_seqs": -1}, "max_num_seqs"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_num_waiting": 0}, "max_num_waiting"),
        ({"connect_timeout_s": float("nan")}, "connect_timeout_s"),
        ({"stage_wait_s": -1.0}, "stage_wait_s"),
    ],
)
def test_values_out_of_range_are_refused_by_field(changes: dict[str, object], field: str) -> None:
    values: dict[str, object] = {"model": "demo", "stages": parse_stages(["h:1"]), **changes}
    with pytest.raises(InvalidArgumentError) as caught:
        ClusterConfig(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_sixteen_stages_are_allowed() -> None:
    stages = parse_stages(f"h:{port}" for port in range(1, 17))
    assert ClusterConfig(model="demo", stages=stages).stages == stages
