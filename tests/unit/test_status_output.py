"""What `coordinator-cli status` prints for people."""

import pytest

from coordinator.cli.status_output import print_table
from stagecoach.client import CoordinatorStatus
from tests.client_statuses import create_status


def test_each_model_has_a_table_of_its_own_stages(capsys: pytest.CaptureFixture[str]) -> None:
    large = create_status(3, model_id="large").models[0]
    small = create_status(1, model_id="small", device="emulated t4-16gb", ready=False).models[0]
    print_table(CoordinatorStatus.of([large, small]))
    head, tail = capsys.readouterr().out.split("small: not ready, emulated, version")
    assert head.startswith("large: ready, version")
    assert [head.count(address) for address in ("h:0", "h:1", "h:2")] == [1, 1, 1]
    assert [tail.count(address) for address in ("h:0", "h:1")] == [1, 0]
    assert "emulated t4-16gb" in tail
    assert head.count("0 running") == tail.count("0 running") == 1
