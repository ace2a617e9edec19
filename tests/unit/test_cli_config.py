"""What an operator may set on a coordinator."""

import pytest

from coordinator.config import CoordinatorConfig, parse_address
from stagecoach.contract.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:50050", ("localhost", 50050)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_addresses_are_split(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, field="listen") == expected


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:-1", "host:65536", "::1:1", "host:123456"]
)
def test_other_forms_are_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address(text, field="listen")
    assert caught.value.field == "listen"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ""}, "model"),
        ({"stages": ()}, "stage"),
        ({"stages": tuple(f"h:{port}" for port in range(1, 18))}, "stage"),
        ({"stages": ("h:1", "h:1")}, "stage"),
        ({"stages": ("h:0",)}, "stage"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"max_num_seqs": -1}, "max_num_seqs"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_num_waiting": 0}, "max_num_waiting"),
        ({"connect_timeout_s": float("nan")}, "connect_timeout_s"),
        ({"stage_wait_s": -1.0}, "stage_wait_s"),
        ({"drain_grace_s": float("inf")}, "drain_grace_s"),
    ],
)
def test_values_out_of_range_are_refused_by_field(changes: dict[str, object], field: str) -> None:
    values: dict[str, object] = {"model": "demo", "stages": ("h:1",), **changes}
    with pytest.raises(InvalidArgumentError) as caught:
        CoordinatorConfig(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_sixteen_stages_are_allowed() -> None:
    stages = tuple(f"h:{port}" for port in range(1, 17))
    assert CoordinatorConfig(model="demo", stages=stages).stages == stages
