"""The check of a card on the CPU: what needs whole clusters, or Triton's interpreter."""

from typing import Any

import pytest

from tests.gpu_checks import check_cpu, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check_cpu(tmp_path_factory.mktemp("gpu-check"), "kernels,text,speed,recovery")


def test_kernels_are_compared_with_their_twins(report: dict[str, Any]) -> None:
    rows = rows_of(report, "kernels").values()
    assert [row["verdict"] for row in rows] == ["pass", "pass"]


def test_the_text_is_that_of_transformers(report: dict[str, Any]) -> None:
    assert {row["verdict"] for row in rows_of(report, "text").values()} == {"pass"}


def test_a_stage_and_what_is_around_it_are_measured_at_every_batch(report: dict[str, Any]) -> None:
    rows = rows_of(report, "speed")
    assert rows.keys() == {
        f"{what}, batch {batch}" for what in ("a stage", "outside the stage") for batch in (1, 8)
    }
    assert {row["verdict"] for row in rows.values()} == {"not judged on a CPU"}


def test_streams_go_on_with_the_same_text_after_a_kill(report: dict[str, Any]) -> None:
    rows = rows_of(report, "recovery")
    assert rows["streams that end with the text of the undisturbed run"]["figure"] == 8
    assert rows["longest pause of a stream"]["figure"] > 0
